// message-db: its SQL as its package ships it, its functions called as its guide says, through node-postgres's pool. Variant: postgres.
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import pg from "pg";
import { serve } from "./kit.mjs";

const POOL = 32;
const SCRIPTS = [
  ..."schema/message-store extensions/pgcrypto tables/messages types/message".split(" "),
  ..."message-store-version hash-64 acquire-lock category is-category id cardinal-id stream-version write-message"
    .split(" ")
    .map((name) => `functions/${name}`),
  "functions/get-stream-messages",
  ..."messages-id messages-stream messages-category".split(" ").map((name) => `indexes/${name}`),
];
const WRITE = "SELECT write_message($1::varchar, $2::varchar, 'MessageAdded'::varchar, $3::jsonb, NULL::jsonb, $4::bigint)";
const READ = "SELECT data FROM get_stream_messages($1::varchar, 0, -1)";

let pool;
const versions = new Map();

async function write(client, stream, message, expected) {
  const { rows } = await client.query({ name: "write", text: WRITE, values: [randomUUID(), stream, JSON.stringify(message), expected] });
  return Number(rows[0].write_message);
}

// A category of its own per stream: appends to one category wait for each other's commits, and agents need not share one.
const named = (stream) => `${stream.replaceAll("-", "")}-1`;

await serve({
  async open({ url }) {
    pool = new pg.Pool({ connectionString: url, max: POOL, options: "-c search_path=message_store,public" });
    const folder = new URL("./node_modules/@eventide/message-db/database/", import.meta.url);
    for (const script of SCRIPTS) await pool.query(readFileSync(new URL(`${script}.sql`, folder), "utf8").replaceAll("CONCURRENTLY", ""));
    return { version: "1.3.1", settings: { "expected version": "on", encryption: "off", connections: POOL, category: "one a stream" } };
  },

  async append(stream, message) {
    versions.set(stream, await write(pool, named(stream), message, versions.get(stream) ?? -1));
  },

  async fill(stream, messages) {
    const client = await pool.connect();
    try {
      await client.query("BEGIN");
      for (const message of messages) await write(client, named(stream), message, null);
      await client.query("COMMIT");
    } finally {
      client.release();
    }
  },

  async load(stream) {
    const { rows } = await pool.query({ name: "read", text: READ, values: [named(stream)] });
    return rows.map((row) => JSON.parse(row.data)).length;
  },

  async replay() {
    throw new Error("it has no read of all streams");
  },

  async close() {
    await pool.end();
  },
});
