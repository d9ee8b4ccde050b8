-- A Task has several Runs. A column's UNIQUE cannot be dropped, so the table is made anew; steps refer to it, and keep their
-- Runs' ids meanwhile.
CREATE TABLE run_before AS
    SELECT id, task_id, job_id, steps, calls, generated_tokens, prompt_tokens, wall_s, result FROM run;
CREATE TABLE step_before AS SELECT run_id, seq, fence, kind, recorded_at, record FROM step;
DELETE FROM step;
DROP TABLE run;

CREATE TABLE run (
    id BLOB NOT NULL PRIMARY KEY,
    task_id BLOB NOT NULL REFERENCES task (id),
    job_id BLOB NOT NULL UNIQUE REFERENCES job (id),
    -- Among the Task's Runs, from 1.
    ordinal INTEGER NOT NULL,
    -- Absent: the first configured one.
    model TEXT,
    -- What this Run is told and the others are not.
    instruction TEXT,
    -- The next step's number, and what its newest step says was spent.
    steps INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    generated_tokens INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    wall_s INTEGER NOT NULL,
    result TEXT,
    UNIQUE (task_id, ordinal)
) STRICT;

INSERT INTO run (id, task_id, job_id, ordinal, model, steps, calls, generated_tokens, prompt_tokens, wall_s, result)
    SELECT before.id, before.task_id, before.job_id, 1, json_extract(task.subject, '$.value.model'), before.steps,
           before.calls, before.generated_tokens, before.prompt_tokens, before.wall_s, before.result
    FROM run_before AS before JOIN task ON task.id = before.task_id;
INSERT INTO step (run_id, seq, fence, kind, recorded_at, record)
    SELECT run_id, seq, fence, kind, recorded_at, record FROM step_before;
DROP TABLE run_before;
DROP TABLE step_before;

-- The number of the Run whose end is the Task's.
ALTER TABLE task ADD COLUMN leading_run INTEGER NOT NULL DEFAULT 1;

-- Older binaries take any Run for a Task's only one.
UPDATE ledger SET oldest_reader = 10;
