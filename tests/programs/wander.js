// Checks itself: timers, promises, worker threads, the thread pool, signals, buffers outside of the heap. The rounds end after SIGTERM.
'use strict';
const { Worker, isMainThread, parentPort } = require('worker_threads');
const { createHash, pbkdf2 } = require('crypto');
const { writeSync } = require('fs');

if (!isMainThread) {
  parentPort.on('message', (n) => {
    let sum = 0;
    for (let i = 0; i < 10000; i++) sum += (i * n) % 7;
    parentPort.postMessage([n, sum]);
  });
} else {
  const fail = (what) => { writeSync(1, `fail ${what}\n`); process.exit(1); };
  const pid = process.pid, worker = new Worker(__filename);
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  let ticks = 0, signals = 0, wanted = new Map();
  setInterval(() => ticks++, 2);
  process.on('SIGUSR2', () => signals++);
  let told = false;
  process.on('SIGTERM', () => { told = true; });
  worker.on('message', ([n, sum]) => { wanted.get(n)(sum); wanted.delete(n); });
  const ask = (n) => new Promise((done) => { wanted.set(n, done); worker.postMessage(n); });
  const buffer = Buffer.alloc(4 << 20, 'travels');
  const hash = () => createHash('sha256').update(buffer).digest('hex');
  (async () => {
    const first = hash();
    let last = process.hrtime.bigint();
    for (let round = 0; !told; round++) {
      writeSync(1, `round ${round}\n`);
      const before = ticks, heard = signals;
      process.kill(pid, 'SIGUSR2');
      const key = await new Promise((done) => pbkdf2('a', 'b', 2000, 16, 'sha512', (e, k) => done(k.toString('hex'))));
      if (key !== (globalThis.key ??= key)) fail('the thread pool');
      let sum = 0;
      for (let i = 0; i < 10000; i++) sum += (i * (round + 3)) % 7;
      if (await ask(round + 3) !== sum) fail('the worker');
      while (ticks < before + 15 || signals <= heard) await pause(3);
      const now = process.hrtime.bigint();
      if (now < last || now - last > 20n * 1000000000n) fail('the clock');
      last = now;
      if (hash() !== first) fail('the buffer');
      if (process.pid !== pid) fail('pid');
    }
    writeSync(1, 'done\n');
    process.exit(42);
  })();
}
