-- Core tables. Columns are TEXT, BIGINT or BYTEA only, so that one text serves SQLite and Postgres.
-- Times are milliseconds since 1970 (UTC); money is millionths of a US dollar; documents are JSON text.

CREATE TABLE inbox (
    id TEXT NOT NULL PRIMARY KEY,
    source TEXT NOT NULL,
    delivery_id TEXT NOT NULL,
    event TEXT NOT NULL,
    headers TEXT NOT NULL,
    -- lz4 (block format, size prepended) of the raw bytes.
    raw BYTEA NOT NULL,
    raw_bytes BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    -- pending | done | ignored | not_yet_handled | failed
    state TEXT NOT NULL,
    verdict TEXT NOT NULL,
    not_before BIGINT NOT NULL,
    tries BIGINT NOT NULL
);
CREATE UNIQUE INDEX inbox_delivery ON inbox (delivery_id, source);
CREATE INDEX inbox_pending ON inbox (received_at, id) WHERE state = 'pending';
CREATE INDEX inbox_received ON inbox (received_at);

CREATE TABLE tasks (
    id TEXT NOT NULL PRIMARY KEY,
    remote TEXT NOT NULL,
    repo_id BIGINT NOT NULL,
    -- The whole repository as JSON; the id stands beside it to be searched by.
    repo TEXT NOT NULL,
    kind TEXT NOT NULL,
    number BIGINT NOT NULL,
    title TEXT NOT NULL,
    branch TEXT,
    pull_number BIGINT,
    pull_url TEXT,
    created_at BIGINT NOT NULL,
    closed_at BIGINT
);
CREATE UNIQUE INDEX tasks_open_subject ON tasks (remote, repo_id, number) WHERE closed_at IS NULL;
CREATE INDEX tasks_open_pull ON tasks (remote, repo_id, pull_number) WHERE closed_at IS NULL;

CREATE TABLE task_links (
    child TEXT NOT NULL,
    parent TEXT NOT NULL,
    -- parent | blocked_by
    kind TEXT NOT NULL,
    PRIMARY KEY (child, parent, kind)
);

CREATE TABLE runs (
    id TEXT NOT NULL PRIMARY KEY,
    task TEXT NOT NULL,
    key TEXT NOT NULL,
    remote TEXT NOT NULL,
    repo_id BIGINT NOT NULL,
    repo_name TEXT NOT NULL,
    repo TEXT NOT NULL,
    requester BIGINT NOT NULL,
    -- Runs with the same lock never run at the same time: the task, or the branch of a pull request.
    lock_key TEXT NOT NULL,
    spec TEXT NOT NULL,
    state TEXT NOT NULL,
    priority BIGINT NOT NULL,
    -- 0: at once.
    not_before BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT,
    lease_owner TEXT,
    lease_until BIGINT,
    fence BIGINT NOT NULL,
    cancel_requested TEXT,
    attempts BIGINT NOT NULL,
    progress TEXT NOT NULL,
    agent_end TEXT,
    outcome TEXT NOT NULL
);
CREATE UNIQUE INDEX runs_key ON runs (key);
CREATE INDEX runs_ready ON runs (priority, created_at, id) WHERE state = 'queued';
CREATE INDEX runs_waiting ON runs (lock_key, created_at, id) WHERE state = 'queued';
CREATE INDEX runs_live ON runs (lock_key) WHERE state IN ('preparing', 'running', 'collecting', 'publishing', 'reporting');
CREATE INDEX runs_task ON runs (task, created_at);
CREATE INDEX runs_requester ON runs (requester, created_at);
CREATE INDEX runs_created ON runs (created_at);

CREATE TABLE attempts (
    run TEXT NOT NULL,
    n BIGINT NOT NULL,
    slot TEXT NOT NULL,
    container TEXT,
    started_at BIGINT NOT NULL,
    ended_at BIGINT,
    log_cursor BIGINT NOT NULL,
    PRIMARY KEY (run, n)
);
CREATE UNIQUE INDEX attempts_slot ON attempts (slot);

CREATE TABLE artifacts (
    run TEXT NOT NULL,
    part TEXT NOT NULL,
    bytes BYTEA NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (run, part)
);

CREATE TABLE effects (
    id TEXT NOT NULL PRIMARY KEY,
    run TEXT,
    task TEXT,
    remote TEXT NOT NULL,
    installation BIGINT NOT NULL,
    repo_id BIGINT NOT NULL,
    repo TEXT NOT NULL,
    kind TEXT NOT NULL,
    effect_key TEXT NOT NULL,
    priority BIGINT NOT NULL,
    payload TEXT NOT NULL,
    revision BIGINT NOT NULL,
    state TEXT NOT NULL,
    intent_at BIGINT,
    -- 0: at once.
    not_before BIGINT NOT NULL,
    remote_ref TEXT,
    tries BIGINT NOT NULL,
    last_error TEXT,
    created_at BIGINT NOT NULL,
    confirmed_at BIGINT
);
CREATE UNIQUE INDEX effects_key ON effects (effect_key);
CREATE INDEX effects_due ON effects (remote, installation, priority, created_at) WHERE state IN ('planned', 'sending', 'ambiguous');
CREATE INDEX effects_run ON effects (run);

-- Content writes of the last hour: the memory of the rate governor.
CREATE TABLE writes (
    remote TEXT NOT NULL,
    installation BIGINT NOT NULL,
    at BIGINT NOT NULL
);
CREATE INDEX writes_recent ON writes (remote, installation, at);

-- Until when nothing may be sent to an installation (retry-after).
CREATE TABLE holds (
    remote TEXT NOT NULL,
    installation BIGINT NOT NULL,
    until BIGINT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (remote, installation)
);

CREATE TABLE ledger (
    run TEXT NOT NULL,
    request_id TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    model TEXT NOT NULL,
    reserved BIGINT NOT NULL,
    -- NULL until settled; an unsettled request counts at its reservation.
    used BIGINT,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    cache_read_tokens BIGINT NOT NULL,
    cache_write_tokens BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (run, request_id)
);

CREATE TABLE log_chunks (
    run TEXT NOT NULL,
    seq BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    at BIGINT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (run, seq)
);

CREATE TABLE nodes (
    id TEXT NOT NULL PRIMARY KEY,
    role TEXT NOT NULL,
    capabilities TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL
);

CREATE TABLE installations (
    remote TEXT NOT NULL,
    id BIGINT NOT NULL,
    account TEXT NOT NULL,
    -- active | suspended | deleted
    state TEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (remote, id)
);

CREATE TABLE tokens (
    id TEXT NOT NULL PRIMARY KEY,
    -- SHA-256 of the token, hex; the token itself is shown once and never stored.
    hash TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    revoked_at BIGINT
);
CREATE UNIQUE INDEX tokens_hash ON tokens (hash);

-- Append-only: one row per grant, refusal, approval, push, configuration change, token use.
CREATE TABLE audit (
    id TEXT NOT NULL PRIMARY KEY,
    at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX audit_at ON audit (at);

-- Switches of the operator, e.g. `paused`.
CREATE TABLE settings (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL,
    updated_at BIGINT NOT NULL
);
