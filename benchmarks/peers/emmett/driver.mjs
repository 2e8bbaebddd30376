// emmett's event store for PostgreSQL, through its own connection pool. Variant: postgres.
import { getPostgreSQLEventStore } from "@event-driven-io/emmett-postgresql";
import { serve } from "./kit.mjs";

const BATCH = 100;
const event = (message) => ({ type: "MessageAdded", data: message });
const add = (messages, { data }) => {
  messages.push(data);
  return messages;
};

let store;
const versions = new Map();

await serve({
  async open({ url }) {
    store = getPostgreSQLEventStore(url);
    await store.schema.migrate();
    return { version: "0.42.0", settings: { "expected version": "on", encryption: "off", connections: "the pool's default" } };
  },

  async append(stream, message) {
    const options = versions.has(stream) ? { expectedStreamVersion: versions.get(stream) } : {};
    const done = await store.appendToStream(stream, [event(message)], options);
    versions.set(stream, done.nextExpectedStreamVersion);
  },

  async fill(stream, messages) {
    for (let first = 0; first < messages.length; first += BATCH) {
      await store.appendToStream(stream, messages.slice(first, first + BATCH).map(event));
    }
  },

  async load(stream) {
    const found = await store.aggregateStream(stream, { evolve: add, initialState: () => [] });
    return found.state.length;
  },

  async replay() {
    throw new Error("it has no read of all streams but its consumers");
  },

  async close() {
    await store.close();
  },
});
