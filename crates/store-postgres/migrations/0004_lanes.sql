-- Whose turn it is. A pool is what a worker must be able to do, a lane is where the jobs of one pool stand for the slots of one
-- repository or installation. Only a lease changes a lane, under the lock of its kind of job: what else happens to a job changes
-- its own row alone, so dashboards do not wait for each other.
CREATE TABLE pool (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    order_version bigint NOT NULL,
    -- Empty: the first configured one, or none is needed.
    model text NOT NULL,
    UNIQUE (kind, order_version, model)
);

CREATE TABLE lane (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pool_id bigint NOT NULL REFERENCES pool (id),
    -- Whose slots its jobs take: `repo:77`, `installation:5`.
    slots_of text NOT NULL,
    served_at timestamptz NOT NULL DEFAULT '1970-01-01T00:00:00Z',
    UNIQUE (pool_id, slots_of)
);

CREATE INDEX lane_slots ON lane (slots_of);

-- Nobody has jobs of before: no released Fettle could be told to use this ledger.
ALTER TABLE job ADD COLUMN priority bigint NOT NULL;
ALTER TABLE job ADD COLUMN lane_id bigint NOT NULL REFERENCES lane (id);
-- While it is queued.
ALTER TABLE job ADD COLUMN turn_at timestamptz;
UPDATE ledger SET oldest_reader = 4;

CREATE INDEX job_turn ON job (lane_id, turn_at, seq) WHERE turn_at IS NOT NULL;
CREATE INDEX job_held ON job (lane_id) WHERE leased_until IS NOT NULL;
DROP INDEX job_queued;
-- The few that were given up are listed.
CREATE INDEX job_dead ON job (seq) WHERE state = 'dead';
