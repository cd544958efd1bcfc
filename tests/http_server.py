"""A local web server whose answers fail as a test asks."""

import threading
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(BaseHTTPRequestHandler):
    """Serves `server.files`; `server.faults` says what goes wrong, one entry a request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.requests.append((self.path, asked, self.headers.get("If-Range")))
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, Exception):
            self.close_connection = True
            return
        if target := server.redirects.get(self.path):
            self.answer(302, b"", {"Location": target})
            return
        content = server.files.get(self.path.partition("?")[0])
        if isinstance(fault, int) or content is None:
            self.answer(fault or 404, b"sorry", {})
            return
        headers = {"ETag": server.etag} if server.etag else {}
        if server.date:
            headers["Last-Modified"] = server.date
        if self.is_known():
            self.answer(304, b"", headers)
            return
        first = int(asked[len("bytes=") : -1]) if asked else 0
        if not asked or not server.ranges or self.headers.get("If-Range") != server.etag:
            self.answer(200, content, headers, fault)
        elif first >= len(content):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        else:
            start = first + server.shift
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[start:], headers, fault)

    def is_known(self):
        """Whether the client has the file, see RFC 9110, 13.1.2 and 13.1.3."""
        etag, date = self.headers.get("If-None-Match"), self.headers.get("If-Modified-Since")
        if etag:
            return etag.removeprefix("W/") == (self.server.etag or "").removeprefix("W/")
        sent = self.server.date
        return bool(date and sent and parsedate_to_datetime(sent) <= parsedate_to_datetime(date))

    def answer(self, code, body, headers, cut=None):
        """`cut` is a string such as 'cut 100': the connection ends after so many bytes."""
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: int(cut.split()[1])] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, *arguments):
        pass


@contextmanager
def running_server():
    """A server of `files`, {path: content}; `url` is its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.files, server.redirects, server.requests, server.faults = {}, {}, [], []
    server.etag, server.date, server.ranges, server.shift = '"v1"', None, True, 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
