-- How many Tasks an installation has opened lately is counted; those from before this count as opened without one.
ALTER TABLE task ADD COLUMN installation bigint;
-- A delivery that could not be decided is looked at again then. So those that wait do not stand before those that came later.
ALTER TABLE delivery ADD COLUMN not_before timestamptz;
-- An issue's Tasks are also read by age.
DROP INDEX task_issue;
CREATE INDEX task_issue ON task (repo_forge_id, issue_number, created_at, id);
