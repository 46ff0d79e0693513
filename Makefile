# `make run` and `make test` do all their set-up themselves. `make` alone lists what there is.

.DEFAULT_GOAL := help
# Any shell but the default one makes old versions of make, macOS's among them, look for commands in the PATH set here.
SHELL := /bin/bash
# rustup puts cargo there, but a shell that was open before doesn't look.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

# Where the scripts under tools/ keep what is made once.
CACHE := $(or $(MLX_MANAGER_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mlx-manager)
TARGET := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help setup run build gateway observe test ledger fmt lint bench bench-log bench-engine bench-gateway load-engine soak-engine goldens goldens-python clean rust

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: rust ## install what the build needs and prepare MLX (run and test do this too)
	@tools/mlx-prefix.sh

# The daemon takes the place of the recipe's shell, so make's only child is the daemon itself and a signal reaches it
# once: make passes SIGTERM on, and a terminal sends ctrl-C to both. Then make waits until the drain is over.
run: build ## build and start the daemon; ARGS="--config my.toml" is passed on
	@exec $(TARGET)/release/mlx-manager serve $(ARGS)

build: setup ## build target/release/mlx-manager
	cargo build --release

gateway: rust ## build the same without local inference, for cloud providers only; it needs no MLX
	cargo build --release --no-default-features

observe: build ## run the daemon under synthetic load with a Prometheus that scrapes it; ARGS=3 ends it after 3 minutes
	@exec env PYTHONDONTWRITEBYTECODE=1 python3 tests/observe/observe.py $(ARGS)

test: setup ## run all tests
	@if cargo nextest --version >/dev/null 2>&1; then set -x; cargo nextest run --workspace; else set -x; cargo test --workspace; fi
	@if [ -x tests/sdk/run.sh ]; then tests/sdk/run.sh; fi
	@tests/parity/run.sh
	@if [ -x tests/observe/run.sh ]; then tests/observe/run.sh; fi

# `make test` does the same with a thousand. Twice: with the heads of streams that wait for content, and with those that don't.
ledger: rust ## send 10,000 requests through odd providers and hold their bills against rows, metrics, spans and log; LEDGER_SEED=7 draws others
	LEDGER_REQUESTS=$(or $(LEDGER_REQUESTS),10000) cargo test --no-default-features --test it ledger:: -- --nocapture --test-threads 1

fmt: rust ## format the sources
	cargo fmt --all

lint: setup ## check format, clippy's warnings, licences and duplicate versions
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	tools/deny.sh

BENCHES := overhead telemetry latency growth decode memory outage
# The pages show some as they were told at greater length, or beside a picture.
SHOWN := overhead telemetry decode peers

bench: setup bench-log ## run the benchmarks, three quarters of an hour, and put their figures into the pages
	@set -eo pipefail; for bench in $(BENCHES); do (set -x; cargo bench --bench $$bench) | tee $(TARGET)/bench-$$bench.txt; done
	benches/figures.py $(TARGET) $(SHOWN)

# The peers are a workspace of their own, so that the daemon's tests don't build them.
bench-log: rust ## run only the benchmark of log events, beside other loggers
	@python=$(CACHE)/peers/bin/python; $$python -c 'import loguru' 2>/dev/null \
	    || { python3 -m venv $(CACHE)/peers && $(CACHE)/peers/bin/pip install --quiet loguru==0.7.3; } \
	    || { echo "loguru can't be installed below $(CACHE)/peers"; python=; }; \
	set -eo pipefail; mkdir -p $(TARGET); \
	(set -x; cd benches/peers && PEERS_PYTHON=$$python cargo run --release) | tee $(TARGET)/bench-peers.txt

bench-engine: build ## measure the daemon beside mlx_lm.server, half an hour; ARGS="--rounds 1 --short" is passed on
	@benches/engine/run.sh bench $(ARGS)

# Without MLX, since no peer has local models; what is not installed is left out.
bench-gateway: rust ## measure the gateway beside nginx, LiteLLM and Portkey, ten minutes; ARGS="--short" sees that it works
	@benches/gateway/peers.sh $(CACHE)/gateway-peers
	@set -eo pipefail; mkdir -p $(TARGET); \
	(set -x; GATEWAY_PEERS=$(CACHE)/gateway-peers cargo bench --no-default-features --bench gateway -- $(ARGS)) | tee $(TARGET)/bench-gateway.txt
	@[ -n "$(ARGS)" ] || benches/figures.py $(TARGET) gateway

load-engine: build ## send the daemon 1,000 requests of all kinds over 64 connections
	@benches/engine/run.sh load $(ARGS)

soak-engine: build ## an hour of random load on the daemon, then its books are audited; ARGS=1 ends it after a minute
	@benches/engine/run.sh soak $(ARGS)

goldens: goldens-python ## ask mlx-lm again for the answers that the engine's tests compare with
	$(CACHE)/goldens/bin/python tools/goldens/make.py $(ARGS)

goldens-python: $(CACHE)/goldens/installed

$(CACHE)/goldens/installed: tools/goldens/requirements.txt
	python3 -m venv $(@D)
	$(@D)/bin/pip install --quiet --requirement $<
	touch $@

clean: ## remove what cargo built; the prepared MLX stays in ~/.cache/mlx-manager
	cargo clean

rust:
	@tools/check-rust.sh
