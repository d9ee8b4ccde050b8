-- From where each repository is to be looked at for labels that no webhook told of, by the forge's clock.
CREATE TABLE poll (
    repo_forge_id bigint PRIMARY KEY,
    mark_at timestamptz NOT NULL
);
