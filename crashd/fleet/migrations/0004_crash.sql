-- Crashes whose rows take the server a third less time to write.
--
-- jsonb sorts the keys of each record, and nobody asks it for one; json keeps the text. What json takes and jsonb does
-- not, such as an escaped NUL, is refused as before: the view shows jsonb. An index without the id, but for that of
-- time, is a third as large: the few crashes of one instant are sorted when they are read. Ids compare byte by byte,
-- whatever the language of the database: `id >= '2026' AND id < '2026~'` finds nothing in English. The table is
-- written anew.

DROP VIEW crashes;
DROP INDEX crash_host, crash_signature, crash_unit, crash_user_unit, crash_container_id, crash_comm, crash_exe;

ALTER TABLE crash
    ALTER COLUMN doc TYPE json USING doc::text::json,
    ALTER COLUMN id TYPE text COLLATE "C",
    ALTER COLUMN short TYPE text COLLATE "C",
    ADD CONSTRAINT crash_doc CHECK (strpos(doc::text, '\u') = 0 OR doc::jsonb IS NOT NULL);
ALTER TABLE tombstone ALTER COLUMN id TYPE text COLLATE "C";
ALTER TABLE host ALTER COLUMN host TYPE text COLLATE "C";

CREATE INDEX crash_host ON crash (host, time DESC);
CREATE INDEX crash_signature ON crash (signature, time DESC);
CREATE INDEX crash_unit ON crash (unit, time DESC) WHERE unit IS NOT NULL;
CREATE INDEX crash_user_unit ON crash (user_unit, time DESC) WHERE user_unit IS NOT NULL;
CREATE INDEX crash_container_id ON crash (container_id, time DESC) WHERE container_id IS NOT NULL;
CREATE INDEX crash_comm ON crash (comm, time DESC);
CREATE INDEX crash_exe ON crash (exe, time DESC);

CREATE VIEW crashes AS
    SELECT c.id, h.host, c.hostname, c.time, c.kind, c.state, c.disposition, s.signature, v.version, b.build AS build_id,
        l.labels, c.pid, c.uid, c.gid, c.signal, c.what, c.comm, c.exe, c.unit, c.container_id, c.title, c.pinned,
        c.stored_bytes, c.core_key, c.object, c.seen, c.day, c.doc::jsonb AS doc
    FROM crash c
    JOIN host h ON h.number = c.host
    LEFT JOIN signature s ON s.number = c.signature
    LEFT JOIN version v ON v.number = c.version
    LEFT JOIN build b ON b.number = c.build
    LEFT JOIN labelset l ON l.number = c.labels;
COMMENT ON VIEW crashes IS 'crashes by name, for people and dashboards; a condition on day makes it fast';
GRANT SELECT ON crashes TO crashd_index, crashd_read;
