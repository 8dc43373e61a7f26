// A live log as one writes it with Node's http module: server-sent events, every line to every reader at once.
import { createServer } from "node:http";

const readers = new Set();

createServer((request, response) => {
  if (request.method === "POST") {
    let text = "";
    request.on("data", (piece) => (text += piece));
    request.on("end", () => {
      const event = `event: log\ndata: ${JSON.stringify([{ n: 1, k: "out", t: text }])}\n\n`;
      for (const reader of readers) reader.write(event);
      response.end("ok\n");
    });
    return;
  }
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
  response.write(": hello\n\n");
  readers.add(response);
  request.on("close", () => readers.delete(response));
}).listen(Number(process.env.PORT), "127.0.0.1", 4096);
