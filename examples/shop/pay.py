"""Pay an order, as another system does that knows nothing of the shop: `python pay.py ORDER CENTS`."""

import json
import os
import sys
from urllib.parse import urlsplit

import greenstalk

order, cents = map(int, sys.argv[1:])
broker = urlsplit(os.environ.get("BACKEND_CONNECTION_URI", "btq://127.0.0.1:11300"))
with greenstalk.Client((broker.hostname, broker.port or 11300), use="com.example/payments") as client:
    client.put(json.dumps({"order": order, "cents": cents, "reference": "pay.py"}))
