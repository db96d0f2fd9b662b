'use strict';
// The task types of this worker: name -> function of (positional arguments, keyword arguments, signal). What it returns goes back as JSON,
// what it throws is the task's failure. They run on the loop that also beats: keep them asynchronous or short, or use worker_threads.

const { setTimeout: sleep } = require('node:timers/promises');

/** Thrown to say that no retry can help. */
class PermanentError extends Error {
  name = 'PermanentError';
}

module.exports = {
  PermanentError,
  tasks: {
    /** How often each word stands in a text; only those that stand there at least `least` times. */
    'node.wordcount': async ([text], { least = 1 }) => {
      if (typeof text !== 'string') throw new PermanentError('the first argument must be a text');
      const counts = {};
      for (const word of text.toLowerCase().match(/\p{L}+/gu) ?? []) counts[word] = (counts[word] ?? 0) + 1;
      return Object.fromEntries(Object.entries(counts).filter(([, n]) => n >= least).sort());
    },
    /** Waits, and returns how long. */
    'node.sleep': ([seconds], _, signal) => sleep(seconds * 1000, seconds, { signal }),
  },
};
