-- The few that were given up are listed.
CREATE INDEX job_dead ON job (seq) WHERE state = 'dead';
