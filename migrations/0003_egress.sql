-- What runs reached through the proxy and what they were refused; what agents told and asked through their tools.

CREATE TABLE egress (
    run TEXT NOT NULL,
    -- As asked for, in its canonical form; `(others)` once a run has many.
    host TEXT NOT NULL,
    port BIGINT NOT NULL,
    -- allowed | not listed | malformed | address | name | budget | unreachable
    verdict TEXT NOT NULL,
    connections BIGINT NOT NULL,
    -- Counted before they are sent; what a crash left unsent stays counted.
    bytes_out BIGINT NOT NULL,
    bytes_in BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (run, host, port, verdict)
);

-- An agent asks one question; it ends the attempt.
CREATE TABLE questions (
    run TEXT NOT NULL PRIMARY KEY,
    attempt BIGINT NOT NULL,
    question TEXT NOT NULL,
    asked_at BIGINT NOT NULL
);

-- The agent's own checklist.
CREATE TABLE checklists (
    run TEXT NOT NULL PRIMARY KEY,
    items TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);
