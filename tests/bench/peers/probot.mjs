// A Probot app with its own server. With BULLMQ_PORT a delivery is in a BullMQ queue before it is answered:
// what one builds to lose none. Without it nothing is kept.
import { run } from "probot";
import { Queue } from "bullmq";

const port = process.env.BULLMQ_PORT;
const queue = port && new Queue("deliveries", { connection: { host: "127.0.0.1", port: Number(port) } });

await run((app) => {
  app.onAny(async (event) => {
    if (queue) await queue.add(event.name, event.payload, { jobId: event.id });
  });
});
