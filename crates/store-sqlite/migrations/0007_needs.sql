-- A pool is for workers that have certain labels, too. A column of a UNIQUE constraint cannot be added, so the table is made anew;
-- lanes refer to it, and step aside meanwhile. Pools and lanes keep their numbers.
CREATE TABLE pool_before AS SELECT id, kind, order_version, model FROM pool;
CREATE TABLE lane_before AS SELECT id, pool_id, slots_of, served_at, turn_at, turn_seq FROM lane;
DELETE FROM lane;
DROP TABLE pool;

CREATE TABLE pool (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    order_version INTEGER NOT NULL,
    -- Empty: the first configured one, or none is needed.
    model TEXT NOT NULL,
    -- Labels of a worker, in order and with commas between. Empty: any worker will do.
    needs TEXT NOT NULL,
    UNIQUE (kind, order_version, model, needs)
) STRICT;

INSERT INTO pool (id, kind, order_version, model, needs) SELECT id, kind, order_version, model, '' FROM pool_before;
INSERT INTO lane (id, pool_id, slots_of, served_at, turn_at, turn_seq)
    SELECT id, pool_id, slots_of, served_at, turn_at, turn_seq FROM lane_before;
DROP TABLE pool_before;
DROP TABLE lane_before;

-- Older binaries would put what needs a label before any worker, and cannot read that a comment tells of progress.
UPDATE ledger SET oldest_reader = 7;
