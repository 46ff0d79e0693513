"""loguru with the two sinks, playing the scenarios of child.rs."""

import json
import os
import signal
import sys
import time

from loguru import logger

SERVER = "mlx_manager.server.dispatch"
MANAGER = "mlx_manager.store.writer"
WARM_UP = 100
PER_MILLISECOND = 20


def start(folder, rotate):
    rotation = "10 MB" if rotate else None
    logger.remove()
    for file, wanted in [("mlx-server", True), ("mlx-manager", False)]:

        def belongs(record, wanted=wanted):
            return record["extra"]["name"].startswith("mlx_manager.server") == wanted

        logger.add(os.path.join(folder, file + ".log"), level="INFO", rotation=rotation, filter=belongs)


LOGGERS = [logger.bind(name=SERVER), logger.bind(name=MANAGER)]


def log(index):
    LOGGERS[index % 2].info(
        "request finished model={} input_tokens={} duration_ms={} stream={}", "gpt-4o-mini", index, 312.237, True
    )


def play(scenario, events):
    found = {}
    clock = time.perf_counter_ns
    if scenario == "calls":
        for index in range(WARM_UP):
            log(index)
        times = []
        for index in range(events):
            begin = clock()
            log(index)
            times.append(clock() - begin)
        times.sort()
        found = {"p50": times[events // 2], "p99": times[events * 99 // 100], "longest": times[-1]}
        found["logged"] = WARM_UP + events
    elif scenario in ("rate", "end"):
        begin = clock()
        for index in range(events):
            log(index)
        logger.complete()
        found = {"seconds": (clock() - begin) / 1e9, "logged": events}
    elif scenario == "disabled":
        begin = clock()
        for index in range(events):
            LOGGERS[0].trace("request finished input_tokens={}", index)
        found = {"each": (clock() - begin) / events}
    elif scenario == "stall":
        longest = logged = 0
        while logged < events:
            tick = clock()
            for _ in range(PER_MILLISECOND):
                begin = clock()
                log(logged)
                longest = max(longest, clock() - begin)
                logged += 1
            time.sleep(max(0, 1e-3 - (clock() - tick) / 1e9))
        found = {"longest": longest, "logged": logged}
    else:
        for index in range(events):
            log(index)
        if scenario == "exit":
            os._exit(0)
        elif scenario == "abort":
            os.abort()
        elif scenario == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(f"no scenario is called {scenario}")
    print(json.dumps({key: float(value) if key not in ("logged", "lost") else value for key, value in found.items()}))


_, _, _, words, folder = sys.argv
scenario, events = json.loads(words)
start(folder, scenario != "stall")
play(scenario, events)
