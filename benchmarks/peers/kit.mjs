// What a driver on Node answers: the protocol of kit.py, the same load, the same buckets as histogram.py.
import { createInterface } from "node:readline";
import { readFileSync } from "node:fs";

const STREAMS_PER_CALLER = 2;
const BITS = 7;

class Histogram {
  counts = new Map();

  add(milliseconds) {
    const nanoseconds = Math.max(0, Math.floor(milliseconds * 1e6));
    const length = nanoseconds === 0 ? 0 : Math.floor(Math.log2(nanoseconds)) + 1;
    const shift = Math.max(0, length - BITS - 1);
    const bucket = shift * 2 ** BITS + Math.floor(nanoseconds / 2 ** shift);
    this.counts.set(bucket, (this.counts.get(bucket) ?? 0) + 1);
  }

  measured(seconds) {
    const done = [...this.counts.values()].reduce((sum, count) => sum + count, 0);
    return { done, seconds, latency: Object.fromEntries(this.counts) };
  }
}

const seconds = (began) => (performance.now() - began) / 1000;
const stream = (caller, turn) => `caller-${caller}-${turn % STREAMS_PER_CALLER}`;

// driver: open, append, fill, load, replay, settle, close, as in kit.py; `messages` and `conversations` are handed to open.
const requests = {
  async streams(driver, given, { callers }) {
    const make = async (caller) => {
      for (let turn = 0; turn < STREAMS_PER_CALLER; turn++) await driver.append(stream(caller, turn), given.synthetic[0]);
    };
    await Promise.all(Array.from({ length: callers }, (_, caller) => make(caller)));
    return { streams: callers * STREAMS_PER_CALLER };
  },

  async append(driver, given, { callers, duration_s, payload = "synthetic" }) {
    const messages = given[payload];
    const found = new Histogram();
    const began = performance.now();
    const end = began + duration_s * 1000;
    const call = async (caller) => {
      let before = performance.now();
      for (let turn = 0; turn === 0 || before < end; turn++) {
        await driver.append(stream(caller, turn), messages[(caller + turn * callers) % messages.length]);
        const after = performance.now();
        found.add(after - before);
        before = after;
      }
    };
    await Promise.all(Array.from({ length: callers }, (_, caller) => call(caller)));
    return found.measured(seconds(began));
  },

  async store(driver, given, { first, last, prefix }) {
    const began = performance.now();
    let written = 0;
    for (const [number, conversation] of given.conversations.slice(first, last).entries()) {
      for (const message of conversation) {
        await driver.append(`${prefix}-${number}`, message);
        written++;
      }
    }
    return { messages: written, seconds: seconds(began) };
  },

  async fill(driver, given, { stream, count }) {
    const began = performance.now();
    await driver.fill(stream, Array.from({ length: count }, (_, number) => given.real[number % given.real.length]));
    return { messages: count, seconds: seconds(began) };
  },

  async load(driver, given, { stream, count, duration_s }) {
    const held = await driver.load(stream);
    if (held !== count) throw new Error(`${stream} should hold ${count} messages, not ${held}`);
    const found = new Histogram();
    const began = performance.now();
    for (let before = began; found.counts.size === 0 || before < began + duration_s * 1000; ) {
      await driver.load(stream);
      const after = performance.now();
      found.add(after - before);
      before = after;
    }
    return found.measured(seconds(began));
  },

  async replay(driver) {
    const began = performance.now();
    return { events: await driver.replay(), seconds: seconds(began) };
  },

  async settle() {
    return {};
  },
};

export async function serve(driver) {
  const given = JSON.parse(process.argv[2]);
  // Whatever a product prints goes to stderr: stdout is the protocol's.
  const say = process.stdout.write.bind(process.stdout);
  console.log = console.info = console.debug = console.error;
  const about = await driver.open(given);
  const payloads = JSON.parse(readFileSync(given.payloads));
  say(JSON.stringify({ ready: about }) + "\n");
  for await (const line of createInterface({ input: process.stdin })) {
    const { do: name, ...request } = JSON.parse(line);
    let answer;
    try {
      answer = await requests[name](driver, payloads, request);
    } catch (error) {
      answer = { error: `${error.name}: ${error.message}` };
    }
    say(JSON.stringify(answer) + "\n");
  }
  await driver.close();
}
