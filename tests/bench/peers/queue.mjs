// A BullMQ queue whose jobs do nothing. Arguments: port of Redis, jobs, concurrency, milliseconds between two jobs.
// Without a pause they are added 64 at a time, by a process of its own beside that of the worker.
// Prints the milliseconds from the first job added to the last one done; with a pause also how long each took from the
// call that adds it until it began.
import { fork } from "node:child_process";
import { Queue, Worker } from "bullmq";

const [port, jobs, concurrency, pause] = process.argv.slice(2, 6).map(Number);
const connection = { host: "127.0.0.1", port };
const now = () => performance.timeOrigin + performance.now();
const IN_FLIGHT = 64;

async function add() {
  const queue = new Queue("jobs", { connection });
  await queue.waitUntilReady();
  const first = now();
  if (pause) {
    for (let n = 0; n < jobs; n += 1) {
      await new Promise((resolve) => setTimeout(resolve, pause));
      await queue.add("job", { at: now() });
    }
  } else {
    let next = 0;
    const adder = async () => {
      while (next < jobs) {
        next += 1;
        await queue.add("job", { at: now() });
      }
    };
    await Promise.all(Array.from({ length: IN_FLIGHT }, adder));
  }
  await queue.close();
  process.send(first, () => process.exit(0));
}

async function work() {
  const times = [];
  let done;
  const all = new Promise((resolve) => { done = resolve; });
  const worker = new Worker("jobs", async (job) => { times.push(now() - job.data.at); }, { connection, concurrency });
  let ended = 0;
  worker.on("completed", () => {
    ended += 1;
    if (ended === jobs) done(now());
  });
  await worker.waitUntilReady();
  const adder = fork(process.argv[1], [...process.argv.slice(2, 6), "add"]);
  const first = new Promise((resolve) => adder.on("message", resolve));
  const last = await all;
  console.log(last - (await first));
  if (pause) console.log(times.join("\n"));
  await worker.close();
  process.exit(0);
}

await (process.argv[6] === "add" ? add() : work());
