-- Ways out of the sandbox that wait for a person, and the approval of code from forks.

-- Heads of pull requests from forks whose code may be run; each approval names one commit.
CREATE TABLE approvals (
    remote TEXT NOT NULL,
    repo_id BIGINT NOT NULL,
    number BIGINT NOT NULL,
    head TEXT NOT NULL,
    approver BIGINT NOT NULL,
    login TEXT NOT NULL,
    -- When the approving comment was written: a push at or after that time voids the approval.
    written_at BIGINT NOT NULL,
    PRIMARY KEY (remote, repo_id, number, head)
);

-- The newest push to each pull request, by the forge's clock.
CREATE TABLE pull_pushes (
    remote TEXT NOT NULL,
    repo_id BIGINT NOT NULL,
    number BIGINT NOT NULL,
    head TEXT NOT NULL,
    pushed_at BIGINT NOT NULL,
    PRIMARY KEY (remote, repo_id, number)
);

CREATE INDEX runs_held ON runs (created_at) WHERE state = 'held';
