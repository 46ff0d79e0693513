"""Holds the metrics, dashboards and alerts against a real Prometheus that scrapes a daemon under load.

Usage: check.py BINARY PROMETHEUS_FOLDER. Ends with the plain line "N passed, N failed".
"""

import math
import re
import signal
import subprocess
import sys
import time
import traceback
import urllib.request

from stack import ROOT, Stack, queries, resolved

# How long a query may take to have a sane answer: the load begins with it, and the machine may be busy.
PATIENCE = 120
# `rate` extrapolates, so that a share of a whole may come out a little over it.
ROUNDING = 1.1


class Checks:
    def __init__(self):
        self.passed = self.failed = 0

    def run(self, name, check, *arguments):
        try:
            check(*arguments)
            self.passed += 1
        except Exception:
            self.failed += 1
            print(f"{name} failed:", file=sys.stderr)
            traceback.print_exc()


def promtool(folder, *arguments, text=None):
    result = subprocess.run(
        [f"{folder}/promtool", *arguments], input=text, capture_output=True, text=True, cwd=f"{ROOT}/dashboards"
    )
    return result.returncode, result.stdout + result.stderr


def files_are_sound(folder, *arguments):
    code, said = promtool(folder, *arguments)
    assert code == 0, said


def page_is_sound(folder, page):
    code, said = promtool(folder, "check", "metrics", text=page)
    assert code == 0, said


def panel_has_an_answer(stack, query, began):
    """Asks until the answer is sane, for a while; the last complaint counts."""
    expression = resolved(query["expression"])
    while True:
        complaint = complaint_about(query, stack.query(expression))
        if complaint is None:
            return
        if time.monotonic() - began > PATIENCE:
            raise AssertionError(f"{query['dashboard']}: {query['panel']}: {complaint}: {expression}")
        time.sleep(0.5)


def complaint_about(query, result):
    if not result:
        return None if query["may_be_empty"] else "no series"
    values = [value for _, value in result if not math.isnan(value)]
    if not values:
        return "only NaN"
    if any(math.isinf(value) or value < 0 for value in values):
        return f"an impossible value in {values}"
    most = query["max"] and query["max"] * (ROUNDING if query["unit"] == "percentunit" else 1)
    if most and max(values) > most:
        return f"{max(values)} is beyond {most}"
    for label in re.findall(r"{{(\w+)}}", query["legend"]):
        if not any(label in labels for labels, _ in result):
            return f"no series has the label {label} of the legend"
    return None


def numbers_agree(stack):
    """The load stopped: what Prometheus holds is what was sent, and no request was lost on the way."""
    for expression in [
        "sum(mlx_manager_requests_total)",
        "mlx_manager_audit_rows_written_total",
        'sum(http_server_request_duration_seconds_count{method="POST"})',
        'sum(mlx_manager_overhead_seconds_count{phase="record"})',
    ]:
        deadline = time.monotonic() + PATIENCE
        while (counted := stack.query(expression)) != [] and counted[0][1] != stack.sent:
            assert time.monotonic() < deadline, f"{expression} is {counted}, {stack.sent} were sent"
            time.sleep(0.5)
        assert counted, expression
    # The newer names of the conventions say what the older ones and our own say.
    for kind in ("input", "output"):
        tokens = [
            stack.query(f'sum(mlx_manager_tokens_total{{type="{kind}",provider!="mlx"}})'),
            stack.query(f"sum(gen_ai_client_inference_usage_{kind}_tokens_total)"),
            stack.query(f"sum(gen_ai_client_inference_operation_{kind}_tokens_sum)"),
            stack.query(f'sum(gen_ai_client_token_usage_sum{{gen_ai_token_type="{kind}"}})'),
        ]
        assert tokens[0][0][1] > 0 and all(other == tokens[0] for other in tokens), tokens


def rules_are_evaluated(stack):
    deadline = time.monotonic() + PATIENCE
    while True:
        rules = [rule for group in stack.ask("rules")["groups"] for rule in group["rules"]]
        assert rules, "no rule was loaded"
        bad = [(rule["name"], rule["health"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"]
        if not bad:
            break
        assert time.monotonic() < deadline, bad
        time.sleep(0.5)
    for rule in rules:
        if rule["type"] == "recording":
            deadline = time.monotonic() + PATIENCE
            while not stack.query(rule["name"]):
                assert time.monotonic() < deadline, f"{rule['name']} has no series"
                time.sleep(0.5)


def main(binary, folder):
    # Stopped from outside, it still takes its processes with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    checks = Checks()
    for arguments in [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts.test.yml")]:
        checks.run(" ".join(arguments), files_are_sound, folder, *arguments)
    with Stack(binary, folder) as stack:
        stack.start_load()
        began = time.monotonic()
        for query in queries():
            checks.run(query["panel"], panel_has_an_answer, stack, query, began)
        checks.run("rules", rules_are_evaluated, stack)
        with urllib.request.urlopen(stack.metrics, timeout=60) as response:
            checks.run("page", page_is_sound, folder, response.read().decode())
        stack.stop_load()
        checks.run("totals", numbers_agree, stack)
        print(f"{stack.sent} requests in {time.monotonic() - began:.0f} s", file=sys.stderr)
    print(f"{checks.passed} passed, {checks.failed} failed")
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
