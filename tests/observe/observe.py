"""A daemon under synthetic load with a Prometheus that scrapes it, to look at: `make observe`.

Usage: observe.py [MINUTES]   (default: 10). Everything stops and its temporary folder goes at the end or on ctrl-C.
"""

import signal
import sys
import threading

from stack import ROOT, Stack, binary, prometheus, queries, resolved


def main(minutes):
    stop = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    with Stack(binary(), prometheus()) as stack:
        stack.start_load()
        print(f"daemon      {stack.api}  (its files: {stack.folder})")
        print(f"metrics     {stack.metrics}")
        print(f"Prometheus  {stack.query_url}/graph  and  {stack.query_url}/alerts")
        print(f"Grafana     add {stack.query_url} as a Prometheus source and import {ROOT}/dashboards/*.json")
        print(f"It ends by itself in {minutes:g} minutes, or with ctrl-C.", flush=True)
        shown = [query for query in queries() if query["dashboard"] == "overview"][:5]
        ends = minutes * 60
        while ends > 0 and not stop.wait(min(10, ends)):
            ends -= 10
            numbers = (
                f"{query['panel']} {value:.3g}"
                for query in shown
                for _, value in stack.query(resolved(query["expression"]))[:1]
            )
            print(" · ".join(numbers), flush=True)
    print("stopped")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
