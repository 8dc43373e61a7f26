-- What the queue and the lists read must not grow with what has ended or with what waits.
-- From one repository with queued runs to the next.
CREATE INDEX runs_queued ON runs (priority, remote, repo_id, created_at, id) WHERE state = 'queued';
CREATE INDEX runs_later ON runs (not_before) WHERE state = 'queued' AND not_before > 0;
CREATE INDEX runs_open ON runs (created_at, id) WHERE state NOT IN ('succeeded', 'nothing', 'needs_input', 'failed', 'cancelled');
CREATE INDEX runs_of_repo ON runs (LOWER(repo_name), created_at, id);
