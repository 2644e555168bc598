"""The chat page: static files, read once, served with a policy that lets in nothing from elsewhere."""

from pathlib import Path

_HERE = Path(__file__).parent

# Model output is untrusted: no script but ours runs, and nothing is loaded from another host.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SCRIPTS = ("app.js", "copy.js", "notes.js", "render.js", "store.js", "stream.js", "texts.js")
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    **{f"/{name}": (name, "text/javascript; charset=utf-8") for name in _SCRIPTS},
}
PAGE_PATHS = tuple(_FILES)


def page_files() -> list[tuple[str, bytes, dict[str, str]]]:
    """Path, content and headers of every file of the page."""
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return [
        (path, (_HERE / name).read_bytes(), headers | {"Content-Type": kind}) for path, (name, kind) in _FILES.items()
    ]
