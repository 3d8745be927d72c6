"""Speaks HTTP over TLS with itself over the loopback, and prints what it did: one JSON object for each line.

usage: tls.py CERTIFICATE KEY blocking|memory TLS_VERSION

Waits for a line on stdin before it begins, and for another before it ends.
"""

import json
import socket
import ssl
import sys
import threading

certificate, key, how, version = sys.argv[1:]
version = ssl.TLSVersion[version]
SECRET = "planted-secret-4711"
BIG = 200_000


def context(side):
    made = ssl.SSLContext(side)
    made.minimum_version = made.maximum_version = version
    made.set_alpn_protocols(["http/1.1"])
    return made


def serve(listener, count):
    server = context(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with server.wrap_socket(connection, server_side=True) as tls:
        stream = tls.makefile("rb")
        for number in range(count):
            length = 0
            while (line := stream.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            assert SECRET.encode() in stream.read(length) or not length
            body = (SECRET + "HTTP/1.1 999 no\r\n\r\n").encode().ljust(BIG if number % 3 == 1 else 60, b"x")
            head = f"HTTP/1.1 {200 + number} Fine\r\nset-cookie: {SECRET}\r\ncontent-length: {len(body)}\r\n\r\n"
            if number % 2:
                tls.sendall(head.encode() + body)
            else:
                tls.sendall(head.encode())
                tls.sendall(body)


def request(number):
    body = SECRET * 10 if number % 2 else ""
    head = f"{'POST' if body else 'GET'} /thing/{number}?key={SECRET} HTTP/1.1\r\nhost: {SECRET}.example\r\n"
    return (head + f"authorization: {SECRET}\r\ncontent-length: {len(body)}\r\n\r\n" + body).encode()


def answer(read):
    """Reads a response; its status."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += read()
    head, body = data.split(b"\r\n\r\n", 1)
    length = int(head.rsplit(b":", 1)[1])
    while len(body) < length:
        body += read()
    assert len(body) == length
    return int(head.split()[1])


class Memory:
    """TLS through memory, as asyncio does it: libssl never sees the socket."""

    def __init__(self, connection):
        self.connection, self.coming, self.going = connection, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context_of_client.wrap_bio(self.coming, self.going, server_hostname="reviews.example")
        self.loop(self.tls.do_handshake)

    def loop(self, step):
        while True:
            try:
                done = step()
                self.flush()
                return done
            except ssl.SSLWantReadError:
                self.flush()
                self.coming.write(self.connection.recv(65536))

    def flush(self):
        if data := self.going.read():
            self.connection.sendall(data)

    def sendall(self, data):
        self.tls.write(data)
        self.flush()

    def recv(self, size):
        return self.loop(lambda: self.tls.read(size))


context_of_client = context(ssl.PROTOCOL_TLS_CLIENT)
context_of_client.load_verify_locations(certificate)
print("ready", flush=True)
sys.stdin.readline()

COUNT = 7
listener = socket.create_server(("127.0.0.1", 0))
server = threading.Thread(target=serve, args=(listener, COUNT))
server.start()
connection = socket.create_connection(listener.getsockname())
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
local = connection.getsockname()[1]

# Another connection of the same thread, which it writes in the middle of SSL_write: first what looks like TLS, so that the probes look
# for plaintext at all, then records that are not of this call, then bytes that are none.
other_listener = socket.create_server(("127.0.0.1", 0))
other = socket.create_connection(other_listener.getsockname())
other_end, _ = other_listener.accept()
between = [b"\x16\x03\x03\x00\x04abcd", b"\x17\x03\x03\x00\x30" + b"r" * 48, b"\x17\x03\x03\x40\x11" + b"r" * 600, b"plain"]


def in_between(_connection, direction, _version, _content, _kind, _data):
    if direction == "write":
        for piece in between:
            other.sendall(piece)
            other_end.sendall(b"turn")
            assert other.recv(4) == b"turn"


if how == "memory":
    tls = Memory(connection)
else:
    context_of_client._msg_callback = in_between
    tls = context_of_client.wrap_socket(connection, server_hostname="reviews.example")
for number in range(COUNT):
    tls.sendall(request(number))
    status = answer(lambda: tls.recv(65536))
    path = f"/thing/{number}"
    print(json.dumps({"method": "POST" if number % 2 else "GET", "path": path, "status": status}), flush=True)
server.join()
other_port = other.getsockname()[1]
print(json.dumps({"client": local, "server": listener.getsockname()[1], "other": other_port}), flush=True)
sys.stdin.readline()
