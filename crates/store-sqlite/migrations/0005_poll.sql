-- From where each repository is to be looked at for labels that no webhook told of, by the forge's clock.
CREATE TABLE poll (
    repo_forge_id INTEGER PRIMARY KEY,
    mark_at INTEGER NOT NULL
) STRICT;
