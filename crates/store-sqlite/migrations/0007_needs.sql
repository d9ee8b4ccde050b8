-- A pool is for workers that have certain labels, too. A column of a UNIQUE constraint cannot be added, so the table is made anew;
-- a lane's pool keeps its number.
PRAGMA defer_foreign_keys = ON;

CREATE TABLE pool_with_needs (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    order_version INTEGER NOT NULL,
    -- Empty: the first configured one, or none is needed.
    model TEXT NOT NULL,
    -- Labels of a worker, in order and with commas between. Empty: any worker will do.
    needs TEXT NOT NULL,
    UNIQUE (kind, order_version, model, needs)
) STRICT;

INSERT INTO pool_with_needs (id, kind, order_version, model, needs) SELECT id, kind, order_version, model, '' FROM pool;
DROP TABLE pool;
ALTER TABLE pool_with_needs RENAME TO pool;

-- Older binaries would put what needs a label before any worker, and cannot read that a comment tells of progress.
UPDATE ledger SET oldest_reader = 7;
