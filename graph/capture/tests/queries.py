"""Queries over a capture, as a user would write them. Called by duckdb.sh."""

import sys

import duckdb

db = duckdb.connect()
for table in ("sockets", "messages", "access_logs", "proxies", "processes"):
    db.execute(f"CREATE VIEW {table} AS FROM read_parquet('{sys.argv[1]}/{table}/*.parquet', filename = true)")


def show(name, sql):
    print(name, *db.execute(sql).fetchone())


show("messages", "SELECT count(*) FROM messages")
show("empty", "SELECT count(*) FROM processes")
# The last row of a cookie counts.
db.execute(
    "CREATE VIEW last_sockets AS SELECT * FROM sockets "
    "QUALIFY row_number() OVER (PARTITION BY cookie ORDER BY filename DESC, last_seen_ns DESC) = 1"
)
show("sockets", "SELECT count(*), max(last_seen_ns) FROM last_sockets")
show("sends", "SELECT count(*), min(s.at_ns), sum(s.seq) FROM (SELECT unnest(sends) AS s FROM messages)")
show(
    "joined",
    "SELECT count(*), count(DISTINCT local_ip), min(local_port) FROM messages JOIN last_sockets USING (cookie) "
    "WHERE direction = 'egress' AND content = 'http1_request'",
)
show(
    "logs",
    "SELECT count(*), median(time_to_last_downstream_tx_byte_ns)::BIGINT, "
    "strftime(make_timestamp_ns(min(start_time_ns)), '%Y-%m-%d') FROM access_logs WHERE side = 'client'",
)
show("labels", "SELECT labels['app'], len(instance_ips) FROM proxies")
show("flags", "SELECT list_sort(list_distinct(flatten(list(response_flags)))) FROM access_logs")
