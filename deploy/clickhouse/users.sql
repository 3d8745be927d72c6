-- The least that agents and reports need. Choose other passwords, and set limits of your own. Not tried: the tests' engine has no users.

CREATE USER IF NOT EXISTS meshdiff_agent IDENTIFIED WITH sha256_password BY 'change me';
GRANT INSERT ON meshdiff.* TO meshdiff_agent;

CREATE USER IF NOT EXISTS meshdiff_report IDENTIFIED WITH sha256_password BY 'change me';
GRANT SELECT ON meshdiff.* TO meshdiff_report;
