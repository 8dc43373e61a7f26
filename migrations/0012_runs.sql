-- Workers that died on a run since it last came a step further.
ALTER TABLE runs ADD COLUMN deaths BIGINT NOT NULL DEFAULT 0;
-- The account that the repository belongs to, in lower case; '' on rows of earlier versions.
ALTER TABLE runs ADD COLUMN owner TEXT NOT NULL DEFAULT '';
CREATE INDEX task_links_parent ON task_links (parent, kind);
