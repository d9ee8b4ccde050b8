-- Models and repositories that people added in the browser. `secret` is sealed; `secret_key` names the key.
CREATE TABLE addition (
    sort TEXT NOT NULL,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    secret_key TEXT,
    secret BLOB,
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (sort, name),
    CHECK ((secret_key IS NULL) = (secret IS NULL))
) STRICT;
