#!/bin/sh
# Bring up Ceph's object gateway on one machine for the tests of durable-s3, and run a command against it.
#
#   apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-mgr ceph-common
#   tests/servers/ceph.sh pytest tests/s3
#
# Everything lives in a temporary folder and ends with the command. The command finds DURABLE_TEST_S3_URL and credentials in its environment.
set -eu

port=${CEPH_PORT:-7480}
folder=$(mktemp -d "${TMPDIR:-/tmp}/durable-ceph-XXXXXX")
pids=

stop() {
    for pid in $pids; do kill -9 "$pid" 2>/dev/null || true; done
    rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT TERM

mkdir "$folder/mon" "$folder/osd" "$folder/mgr" "$folder/run"
cat >"$folder/ceph.conf" <<CONF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon host = [v1:127.0.0.1:$((port + 1))/0]
mon initial members = a
ms bind msgr2 = false
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon cluster log file = $folder/cluster.log
mon warn on pool no redundancy = false
osd objectstore = memstore
memstore device bytes = 4294967296
run dir = $folder/run
pid file =
log file = $folder/\$name.log
admin socket =
[mon]
mon data = $folder/mon
[osd]
osd data = $folder/osd
[mgr]
mgr data = $folder/mgr
mgr initial modules =
[client]
rgw frontends = beast endpoint=127.0.0.1:$port
rgw data = $folder/run
CONF
export CEPH_CONF="$folder/ceph.conf"

ceph_() { ceph -c "$CEPH_CONF" --connect-timeout 60 "$@" >/dev/null 2>&1; }
start() {
    "$@" >>"$folder/out.log" 2>&1 &
    pids="$pids $!"
}

monmaptool --create --addv a "[v1:127.0.0.1:$((port + 1))/0]" --fsid "$(sed -n 's/^fsid = //p' "$CEPH_CONF")" "$folder/monmap" >/dev/null
ceph-mon -c "$CEPH_CONF" --mkfs -i a --monmap "$folder/monmap" >/dev/null
start ceph-mon -c "$CEPH_CONF" -i a -f
osd=$(cat /proc/sys/kernel/random/uuid)
ceph_ osd new "$osd" 0
ceph-osd -c "$CEPH_CONF" -i 0 --mkfs --osd-uuid "$osd" >>"$folder/out.log" 2>&1
start ceph-osd -c "$CEPH_CONF" -i 0 -f
start ceph-mgr -c "$CEPH_CONF" -i a -f

key=durable-access secret=durable-secret
radosgw-admin -c "$CEPH_CONF" user create --uid=durable --display-name=durable --access-key="$key" --secret="$secret" >>"$folder/out.log" 2>&1
start radosgw -c "$CEPH_CONF" -n client.rgw -f

export AWS_ACCESS_KEY_ID="$key" AWS_SECRET_ACCESS_KEY="$secret" AWS_DEFAULT_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
python - "http://127.0.0.1:$port" <<'PYTHON' || { tail -n 40 "$folder"/*.log >&2; exit 1; }
import sys
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError

client = boto3.client("s3", endpoint_url=sys.argv[1])
for _ in range(600):
    try:
        client.create_bucket(Bucket="durable-tests")
        sys.exit()
    except (BotoCoreError, ClientError) as error:
        last = error
    time.sleep(0.1)
sys.exit(f"the gateway does not answer: {last}")
PYTHON
export DURABLE_TEST_S3_URL="s3://durable-tests/logs?endpoint_url=http://127.0.0.1:$port&region=us-east-1&addressing_style=path"
"$@"
