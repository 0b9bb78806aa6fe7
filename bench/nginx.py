"""nginx as a limit: one worker that answers every request with the same bytes, from its configuration."""

from __future__ import annotations

from process import Launch

COMMAND = ("nginx", "-p", "{folder}", "-c", "nginx.conf", "-e", "stderr")
BODY = ('{{"model_name":"{model}","model_version":"1","outputs":[{{"name":"label","datatype":"INT64","shape":[1],'
        '"data":[1]}},{{"name":"probabilities","datatype":"FP32","shape":[1,2],"data":[0.24715018,0.75284982]}}]}}')
CONFIGURATION = """\
daemon off;
master_process off;
pid nginx.pid;
worker_processes 1;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  default_type application/json;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ return 200 '{body}'; }}
  }}
}}
"""


def prepare(launch: Launch) -> None:
    body = BODY.format(model=launch.model)
    (launch.folder / "nginx.conf").write_text(CONFIGURATION.format(port=launch.port, body=body))
