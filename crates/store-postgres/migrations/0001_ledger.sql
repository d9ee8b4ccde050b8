-- The ledger. Enums are snake_case text. Payloads are versioned JSON as text: `jsonb` has no U+0000, which people's texts can
-- hold, and nothing looks into a payload here.

-- One row about the ledger itself.
CREATE TABLE ledger (
    id bigint PRIMARY KEY CHECK (id = 1),
    -- A binary whose schema number is below this one must not use the database.
    oldest_reader bigint NOT NULL,
    -- When somebody last tried whether it can be written.
    probed_at timestamptz
);

INSERT INTO ledger (id, oldest_reader) VALUES (1, 1);

-- Raw webhooks and foreign messages.
CREATE TABLE delivery (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id uuid NOT NULL UNIQUE,
    key text NOT NULL UNIQUE,
    event text NOT NULL,
    correlation_id uuid NOT NULL,
    received_at timestamptz NOT NULL,
    closed_at timestamptz,
    verdict text,
    body bytea NOT NULL
);

CREATE INDEX delivery_open ON delivery (seq) WHERE closed_at IS NULL;

CREATE TABLE task (
    id uuid NOT NULL PRIMARY KEY,
    correlation_id uuid NOT NULL,
    mode text NOT NULL,
    repo_forge_id bigint,
    issue_number bigint,
    generation bigint NOT NULL,
    actor text NOT NULL,
    trigger_kind text NOT NULL,
    -- The fold over its jobs, kept beside them for lists and for the index of active Tasks.
    state text NOT NULL,
    note text,
    cancelled_by text,
    event_seq bigint NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    ended_at timestamptz,
    subject text NOT NULL
);

CREATE UNIQUE INDEX task_active ON task (repo_forge_id, issue_number)
    WHERE ended_at IS NULL AND repo_forge_id IS NOT NULL AND issue_number IS NOT NULL;
-- The generation names the branch. Two dashboards may count the same number of earlier Tasks; only one of them is right.
CREATE UNIQUE INDEX task_generation ON task (repo_forge_id, issue_number, generation)
    WHERE repo_forge_id IS NOT NULL AND issue_number IS NOT NULL;
CREATE INDEX task_issue ON task (repo_forge_id, issue_number);
CREATE INDEX task_created ON task (created_at, id);
CREATE INDEX task_state_created ON task (state, created_at, id);

-- Every trigger that opened or joined a Task.
CREATE TABLE intent (
    key text NOT NULL PRIMARY KEY,
    task_id uuid NOT NULL REFERENCES task (id)
);

CREATE TABLE job (
    -- First come, first served.
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id uuid NOT NULL UNIQUE,
    kind text NOT NULL,
    task_id uuid NOT NULL REFERENCES task (id),
    order_version bigint NOT NULL,
    state text NOT NULL,
    fence bigint NOT NULL,
    ended_by bigint,
    attempts bigint NOT NULL,
    crashes bigint NOT NULL,
    crashes_since_step bigint NOT NULL,
    runnable_at timestamptz,
    delayed_until timestamptz,
    leased_until timestamptz,
    worker_id uuid,
    holder text,
    request_id uuid,
    reason text,
    last_failure text,
    progress bigint NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE INDEX job_queued ON job (kind, seq) WHERE state = 'queued';
CREATE INDEX job_delayed ON job (delayed_until) WHERE delayed_until IS NOT NULL;
CREATE INDEX job_leased ON job (leased_until) WHERE leased_until IS NOT NULL;
CREATE INDEX job_request ON job (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX job_task ON job (task_id, kind, seq);
CREATE INDEX job_unfinished ON job (state) WHERE state NOT IN ('done', 'cancelled');
CREATE UNIQUE INDEX job_publish_unfinished ON job (task_id)
    WHERE kind = 'publish' AND state NOT IN ('done', 'dead', 'cancelled');

-- A few rows are changed again and again beside many that are at rest: a fifth of the table would be too late.
ALTER TABLE job SET (autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE task SET (autovacuum_vacuum_scale_factor = 0.02);

CREATE TABLE run (
    id uuid NOT NULL PRIMARY KEY,
    task_id uuid NOT NULL UNIQUE REFERENCES task (id),
    job_id uuid NOT NULL UNIQUE REFERENCES job (id),
    -- The next step's number, and what its newest step says was spent.
    steps bigint NOT NULL,
    calls bigint NOT NULL,
    generated_tokens bigint NOT NULL,
    prompt_tokens bigint NOT NULL,
    wall_s bigint NOT NULL,
    result text
);

CREATE TABLE step (
    run_id uuid NOT NULL REFERENCES run (id),
    seq bigint NOT NULL,
    fence bigint NOT NULL,
    kind text NOT NULL,
    recorded_at timestamptz NOT NULL,
    record text NOT NULL,
    PRIMARY KEY (run_id, seq)
);

CREATE TABLE effect (
    id uuid NOT NULL PRIMARY KEY,
    task_id uuid NOT NULL REFERENCES task (id),
    kind text NOT NULL,
    state text NOT NULL,
    -- Of the lease that wrote the intent or receipt.
    fence bigint,
    intent text,
    receipt text,
    UNIQUE (task_id, kind)
);

CREATE TABLE message (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id uuid NOT NULL REFERENCES task (id),
    author text NOT NULL,
    posted_at timestamptz NOT NULL,
    -- The lease that was handed it; a later lease is handed it again.
    handed_fence bigint NOT NULL,
    content text NOT NULL
);

CREATE INDEX message_task ON message (task_id, handed_fence);

CREATE SEQUENCE event_feed AS bigint;

-- The feed's numbers become visible in their order: whoever takes one keeps all others waiting until it has committed. So a
-- reader that has seen a number misses none below it. A lock rather than a counter's row: that row would be changed with every
-- event, and one long backup would keep all its versions.
CREATE FUNCTION next_event() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    -- "FE" of Fettle, lock 1; `src/lock.rs` lists them all.
    PERFORM pg_advisory_xact_lock(17989, 1);
    RETURN nextval('event_feed');
END
$$;

CREATE TABLE event (
    seq bigint NOT NULL DEFAULT next_event() PRIMARY KEY,
    task_id uuid NOT NULL REFERENCES task (id),
    task_seq bigint NOT NULL,
    at timestamptz NOT NULL,
    correlation_id uuid NOT NULL,
    -- What the body says it is.
    kind text NOT NULL,
    body text NOT NULL,
    UNIQUE (task_id, task_seq)
);

-- Who follows one Task goes on from a number of the feed.
CREATE INDEX event_task ON event (task_id, seq);

-- Patches and logs, named by the SHA-256 of their content. They are compressed already or soon will be.
CREATE TABLE blob (
    id bytea NOT NULL PRIMARY KEY CHECK (octet_length(id) = 32),
    stored_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    content bytea NOT NULL
);

ALTER TABLE blob ALTER COLUMN content SET STORAGE EXTERNAL;
