-- The ledger. Instants are microseconds since 1970 in UTC, ids 16 bytes, enums snake_case text, payloads versioned JSON.

-- One row about the ledger itself.
CREATE TABLE ledger (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    -- The newest time this ledger has acted at; it never goes back.
    time_at INTEGER NOT NULL,
    -- A binary whose schema number is below this one must not open the file.
    oldest_reader INTEGER NOT NULL,
    -- 1 after a clean close; otherwise the file is checked before use.
    closed INTEGER NOT NULL
) STRICT;

INSERT INTO ledger (id, time_at, oldest_reader, closed) VALUES (1, 0, 1, 1);

-- Raw webhooks and foreign messages. The body is the last column: lists read none of its pages.
CREATE TABLE delivery (
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    key TEXT NOT NULL UNIQUE,
    event TEXT NOT NULL,
    correlation_id BLOB NOT NULL,
    received_at INTEGER NOT NULL,
    closed_at INTEGER,
    verdict TEXT,
    body BLOB NOT NULL
) STRICT;

CREATE INDEX delivery_open ON delivery (seq) WHERE closed_at IS NULL;

CREATE TABLE task (
    id BLOB NOT NULL PRIMARY KEY,
    correlation_id BLOB NOT NULL,
    mode TEXT NOT NULL,
    repo_forge_id INTEGER,
    issue_number INTEGER,
    generation INTEGER NOT NULL,
    actor TEXT NOT NULL,
    trigger_kind TEXT NOT NULL,
    -- The fold over its jobs, kept beside them for lists and for the index of active Tasks.
    state TEXT NOT NULL,
    note TEXT,
    cancelled_by TEXT,
    event_seq INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    ended_at INTEGER,
    subject TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX task_active ON task (repo_forge_id, issue_number)
    WHERE ended_at IS NULL AND repo_forge_id IS NOT NULL AND issue_number IS NOT NULL;
CREATE INDEX task_issue ON task (repo_forge_id, issue_number);
CREATE INDEX task_created ON task (created_at, id);
CREATE INDEX task_state_created ON task (state, created_at, id);

-- Every trigger that opened or joined a Task.
CREATE TABLE intent (
    key TEXT NOT NULL PRIMARY KEY,
    task_id BLOB NOT NULL REFERENCES task (id)
) STRICT;

CREATE TABLE job (
    -- First come, first served.
    seq INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    task_id BLOB NOT NULL REFERENCES task (id),
    order_version INTEGER NOT NULL,
    state TEXT NOT NULL,
    fence INTEGER NOT NULL,
    ended_by INTEGER,
    attempts INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    crashes_since_step INTEGER NOT NULL,
    runnable_at INTEGER,
    delayed_until INTEGER,
    leased_until INTEGER,
    worker_id BLOB,
    holder TEXT,
    request_id BLOB,
    reason TEXT,
    last_failure TEXT,
    progress INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX job_queued ON job (kind, seq) WHERE state = 'queued';
CREATE INDEX job_delayed ON job (delayed_until) WHERE delayed_until IS NOT NULL;
CREATE INDEX job_leased ON job (leased_until) WHERE leased_until IS NOT NULL;
CREATE INDEX job_request ON job (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX job_task ON job (task_id, kind, seq);
-- Not on `state` alone: the planner would prefer that to job_queued and read past the other kind.
CREATE INDEX job_unfinished ON job (state) WHERE state NOT IN ('done', 'cancelled');
CREATE UNIQUE INDEX job_publish_unfinished ON job (task_id)
    WHERE kind = 'publish' AND state NOT IN ('done', 'dead', 'cancelled');

CREATE TABLE run (
    id BLOB NOT NULL PRIMARY KEY,
    task_id BLOB NOT NULL UNIQUE REFERENCES task (id),
    job_id BLOB NOT NULL UNIQUE REFERENCES job (id),
    -- The next step's number, and what its newest step says was spent.
    steps INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    generated_tokens INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    wall_s INTEGER NOT NULL,
    result TEXT
) STRICT;

CREATE TABLE step (
    run_id BLOB NOT NULL REFERENCES run (id),
    seq INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    kind TEXT NOT NULL,
    recorded_at INTEGER NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (run_id, seq)
) STRICT;

CREATE TABLE effect (
    id BLOB NOT NULL PRIMARY KEY,
    task_id BLOB NOT NULL REFERENCES task (id),
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    -- Of the lease that wrote the intent or receipt.
    fence INTEGER,
    intent TEXT,
    receipt TEXT,
    UNIQUE (task_id, kind)
) STRICT;

CREATE TABLE message (
    seq INTEGER PRIMARY KEY,
    task_id BLOB NOT NULL REFERENCES task (id),
    author TEXT NOT NULL,
    posted_at INTEGER NOT NULL,
    -- The lease that was handed it; a later lease is handed it again.
    handed_fence INTEGER NOT NULL,
    content TEXT NOT NULL
) STRICT;

CREATE INDEX message_task ON message (task_id, handed_fence);

CREATE TABLE event (
    seq INTEGER PRIMARY KEY,
    task_id BLOB NOT NULL REFERENCES task (id),
    task_seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    correlation_id BLOB NOT NULL,
    body TEXT NOT NULL,
    UNIQUE (task_id, task_seq)
) STRICT;
