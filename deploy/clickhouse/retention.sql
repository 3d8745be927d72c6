-- Deletes captures seven days after they began. On a cluster: for the tables that end in _local, ON CLUSTER '{cluster}'.

ALTER TABLE sockets MODIFY TTL toDateTime(intDiv(segment, 1000000000)) + INTERVAL 7 DAY;
ALTER TABLE messages MODIFY TTL toDateTime(intDiv(segment, 1000000000)) + INTERVAL 7 DAY;
ALTER TABLE socket_metrics MODIFY TTL toDateTime(intDiv(segment, 1000000000)) + INTERVAL 7 DAY;
ALTER TABLE http2_streams MODIFY TTL toDateTime(intDiv(segment, 1000000000)) + INTERVAL 7 DAY;
ALTER TABLE access_logs MODIFY TTL toDateTime(intDiv(segment, 1000000000)) + INTERVAL 7 DAY;
ALTER TABLE proxies MODIFY TTL toDateTime(intDiv(segment, 1000000000)) + INTERVAL 7 DAY;
ALTER TABLE processes MODIFY TTL toDateTime(intDiv(segment, 1000000000)) + INTERVAL 7 DAY;
ALTER TABLE events MODIFY TTL toDateTime(intDiv(segment, 1000000000)) + INTERVAL 7 DAY;
ALTER TABLE requests MODIFY TTL toDateTime(intDiv(segment, 1000000000)) + INTERVAL 7 DAY;
ALTER TABLE captures MODIFY TTL toDateTime(intDiv(segment, 1000000000)) + INTERVAL 7 DAY;
