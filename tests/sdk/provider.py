"""A simulated provider: answers every POST with the bytes that stand for the model that it names."""

import json
import socket
import threading
import time


class Provider:
    """Listens on a free port; `answers` is by model."""

    def __init__(self):
        self.answers, self.calls = {}, {}
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        try:
            with connection, connection.makefile("rb") as reader:
                while self.answer(connection, reader):
                    pass
        except OSError:
            # Whoever has read enough may leave.
            pass

    def answer(self, connection, reader):
        length, line = 0, reader.readline()
        if not line:
            return False
        while (line := reader.readline().strip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        model = json.loads(reader.read(length))["model"]
        self.calls[model] = self.calls.get(model, 0) + 1
        answer = self.answers[model]
        connection.sendall(answer["head"])
        for piece in answer["pieces"]:
            connection.sendall(piece)
            if answer["wait"]:
                time.sleep(answer["wait"])
        return not answer["close"]
