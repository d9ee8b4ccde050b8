-- Models and repositories that people added in the browser. `secret` is sealed; `secret_key` names the key.
CREATE TABLE addition (
    sort text NOT NULL,
    name text NOT NULL,
    value text NOT NULL,
    secret_key text,
    secret bytea,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (sort, name),
    CHECK ((secret_key IS NULL) = (secret IS NULL))
);
