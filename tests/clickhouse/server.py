"""Speaks ClickHouse's HTTP protocol and answers with chdb, which is ClickHouse's engine inside of this process.

usage: server.py FOLDER USER PASSWORD

Prints the port on which it listens, and ends when its stdin does. What of the protocol meshdiff uses is here: the statement in the address or as
the body, data as the body, query parameters, settings, user and key in headers, errors with X-ClickHouse-Exception-Code. It knows one user,
and does not replicate or distribute anything.

Troubles for tests: `POST /trouble?kind=K&times=N&match=TEXT` makes the next N statements that hold TEXT fail. K is `before` (an
error instead of doing it), `after` (it is done, then an error), `cut` (it is done, then the connection ends without an answer) or `data` (the
error of data that cannot be understood). `GET /seen` tells the statements that came and how many bytes each was answered, one
line of JSON each.
"""

import json
import os
import re
import socket
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from chdb import session

FOLDER, USER, PASSWORD = sys.argv[1:4]
ENGINE = session.Session(os.path.join(FOLDER, "data"))
LOCK = threading.Lock()
SEEN, TROUBLES = [], []

# Parameters of the address that are not settings, and settings that are the HTTP interface's own.
NOT_SETTINGS = {"query", "database", "default_format", "wait_end_of_query", "buffer_size"}
# The HTTP statuses of errors; see exceptionCodeToHTTPStatus in ClickHouse's source.
STATUS = {16: 404, 47: 404, 60: 404, 81: 404, 62: 400, 26: 400, 27: 400, 33: 400, 117: 400, 516: 403, 497: 403}


class Refused(Exception):
    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


def literal(text):
    return "'" + str(text).replace("\\", "\\\\").replace("'", "\\'") + "'"


def settings_of(parameters):
    pairs = [(k, v) for k, v in parameters.items() if k not in NOT_SETTINGS and not k.startswith("param_")]
    for name, _ in pairs:
        if not re.fullmatch(r"\w+", name):
            raise Refused(115, "Code: 115. DB::Exception: Unknown setting")
    return ", ".join(f"{name} = {literal(value)}" for name, value in pairs)


def execute(statement, data, parameters):
    database = parameters.get("database", "default")
    ENGINE.query("USE `" + database.replace("`", "\\`") + "`")
    settings = settings_of(parameters)
    values = {k[len("param_") :]: v for k, v in parameters.items() if k.startswith("param_")}
    match = re.fullmatch(r"(.*?)\s+FORMAT\s+(\w+)\s*", statement, re.S)
    sql, format_name = match.groups() if match else (statement, "TabSeparated")
    if re.match(r"\s*INSERT\b", sql, re.I):
        with tempfile.NamedTemporaryFile(dir=FOLDER) as body:
            body.write(data)
            body.flush()
            clause = f" SETTINGS {settings}" if settings else ""
            ENGINE.query(f"{sql} FROM INFILE {literal(body.name)}{clause} FORMAT {format_name}")
        return b""
    if settings and re.match(r"\s*(SELECT|WITH)\b", sql, re.I):
        sql += f" SETTINGS {settings}"
    return ENGINE.query(sql, format_name, params=values).bytes()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, "".join(json.dumps(line) + "\n" for line in SEEN).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = urlsplit(self.path)
        parameters = {name: values[-1] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
        if address.path == "/trouble":
            TROUBLES.append([parameters["kind"], int(parameters["times"]), parameters["match"]])
            self.answer(200, b"")
            return
        with LOCK:
            self.statement(parameters, body)

    def statement(self, parameters, body):
        statement, data = (parameters["query"], body) if "query" in parameters else (body.decode(), b"")
        trouble = self.trouble(statement)
        seen = {"address": self.path, "statement": statement, "bytes": len(data), "trouble": trouble}
        SEEN.append(seen)
        try:
            if (self.headers.get("X-ClickHouse-User"), self.headers.get("X-ClickHouse-Key")) != (USER, PASSWORD):
                raise Refused(516, f"Code: 516. DB::Exception: {self.headers.get('X-ClickHouse-User')}: Authentication failed")
            if trouble == "before":
                raise Refused(252, "Code: 252. DB::Exception: Too many parts")
            if trouble == "data":
                raise Refused(117, "Code: 117. DB::Exception: Incorrect data")
            result = execute(statement, data, parameters)
            seen["answer"] = len(result)
            if trouble == "after":
                raise Refused(209, "Code: 209. DB::Exception: Timeout exceeded")
            if trouble == "cut":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.answer(200, result)
        except Exception as error:  # whatever the engine says is the answer
            text = str(error)
            found = re.search(r"Code: (\d+)", text)
            code = error.code if isinstance(error, Refused) else int(found.group(1)) if found else 1002
            headers = [("X-ClickHouse-Exception-Code", str(code))]
            self.answer(STATUS.get(code, 500), text.encode(), headers)

    def trouble(self, statement):
        for entry in TROUBLES:
            if entry[1] > 0 and entry[2] in statement:
                entry[1] -= 1
                return entry[0]
        return None


class Server(ThreadingHTTPServer):
    daemon_threads = True


server = Server(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_address[1], flush=True)
sys.stdin.read()
os._exit(0)
