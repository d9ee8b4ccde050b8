-- A Task has several Runs.
ALTER TABLE run DROP CONSTRAINT run_task_id_key;
-- Among the Task's Runs, from 1.
ALTER TABLE run ADD COLUMN ordinal bigint NOT NULL DEFAULT 1;
ALTER TABLE run ALTER COLUMN ordinal DROP DEFAULT;
-- Absent: the first configured one.
ALTER TABLE run ADD COLUMN model text;
-- What this Run is told and the others are not.
ALTER TABLE run ADD COLUMN instruction text;
ALTER TABLE run ADD UNIQUE (task_id, ordinal);
-- PostgreSQL reads no JSON with an escaped U+0000, which people may have written; but inside a string no quote stands before a
-- colon without a backslash, so this is the key, and its value a string or null.
UPDATE run SET model = substring(task.subject from '"model":("(?:[^"\\]|\\.)*"|null)')::json #>> '{}'
    FROM task WHERE task.id = run.task_id;

-- The number of the Run whose end is the Task's.
ALTER TABLE task ADD COLUMN leading_run bigint NOT NULL DEFAULT 1;

-- Older binaries take any Run for a Task's only one.
UPDATE ledger SET oldest_reader = 8;
