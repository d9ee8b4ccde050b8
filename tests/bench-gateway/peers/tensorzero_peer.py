"""TensorZero's gateway as its Python package brings it: says where it listens, and serves until it is killed."""

import sys
import time

from openai import OpenAI
from tensorzero import patch_openai_client

client = OpenAI(api_key="none", base_url="http://127.0.0.1:9")
patch_openai_client(client, config_file=sys.argv[1], clickhouse_url=None, async_setup=False)
print(f"listens on {client.base_url}", flush=True)
while True:
    time.sleep(3600)
