-- Whose turn it is. A pool is what a worker must be able to do, a lane is where the jobs of one pool stand for the slots of one
-- repository or installation. Jobs and lanes keep their turns, so that the next job is found without reading the others.
CREATE TABLE pool (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    order_version INTEGER NOT NULL,
    -- Empty: the first configured one, or none is needed.
    model TEXT NOT NULL,
    UNIQUE (kind, order_version, model)
) STRICT;

CREATE TABLE lane (
    id INTEGER PRIMARY KEY,
    pool_id INTEGER NOT NULL REFERENCES pool (id),
    -- Whose slots its jobs take: `repo:77`, `installation:5`.
    slots_of TEXT NOT NULL,
    served_at INTEGER NOT NULL,
    -- Of its first job; absent while it has none or no free slot.
    turn_at INTEGER,
    turn_seq INTEGER,
    UNIQUE (pool_id, slots_of)
) STRICT;

CREATE INDEX lane_turn ON lane (pool_id, turn_at, turn_seq) WHERE turn_at IS NOT NULL;
CREATE INDEX lane_slots ON lane (slots_of);

ALTER TABLE job ADD COLUMN priority INTEGER NOT NULL DEFAULT 4;
-- Absent for jobs of older binaries; the next start gives them one. No foreign key: each change of a lane would look for its jobs,
-- also those of long ago, and lanes are never deleted.
ALTER TABLE job ADD COLUMN lane_id INTEGER;
-- While it is queued.
ALTER TABLE job ADD COLUMN turn_at INTEGER;

CREATE INDEX job_turn ON job (lane_id, turn_at, seq) WHERE turn_at IS NOT NULL;
CREATE INDEX job_held ON job (lane_id) WHERE leased_until IS NOT NULL;
CREATE INDEX job_astray ON job (state) WHERE lane_id IS NULL;
