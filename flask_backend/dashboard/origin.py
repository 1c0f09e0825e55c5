"""Whether a POST comes from a page of the same site: the protection against forged requests. Pure.

The table is that of Go's ``CrossOriginProtection``, made stricter: a request with neither header is refused too.
Browsers send ``Sec-Fetch-Site`` over HTTPS and to loopback addresses, and ``Origin`` with each POST.
"""

from __future__ import annotations

from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}
_PROXY = (
    "If this is a page of the same site, a proxy has changed the Host header: let it pass the original one as "
    "X-Forwarded-Host, and wrap the app in werkzeug.middleware.proxy_fix.ProxyFix(app.wsgi_app, x_host=1, x_proto=1)."
)


def find_fault(fetch_site: str | None, origin: str | None, scheme: str, host: str) -> str | None:
    """Return why a POST is refused, or None if it comes from the same site.

    ``fetch_site`` and ``origin`` are the request's headers; ``scheme`` and ``host`` are its own.
    """
    if fetch_site is not None:
        if fetch_site == "same-origin":
            return None
        return f"the request does not come from a page of this site (Sec-Fetch-Site: {fetch_site})."
    if origin is None:
        return "the request has neither the header Sec-Fetch-Site nor Origin, which each browser sends."
    if _place_of(origin) == _place_of(f"{scheme}://{host}") is not None:
        return None
    return f"the request comes from {origin}, but this page is at the host {host}. {_PROXY}"


def _place_of(url: str) -> tuple[str, int] | None:
    """Return the host and the port of an origin, each default port as 0: a proxy may have ended TLS."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname or parts.scheme not in _DEFAULT_PORTS:
        return None
    return parts.hostname, 0 if port in (None, _DEFAULT_PORTS[parts.scheme]) else port or 0
