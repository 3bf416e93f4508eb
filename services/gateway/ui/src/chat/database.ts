/** Conversations in the browser's IndexedDB. Everything here fails where there is none, or where it is full. */

import type { Conversation } from "./conversation";

const STORE = "conversations";
/** A database that has not answered by then will not; the page waits for it before it sends anything. */
const OPEN_WITHIN_MS = 10_000;
let opening: Promise<IDBDatabase> | undefined;

function open(): Promise<IDBDatabase> {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("rhizome", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    setTimeout(() => reject(new Error("no answer")), OPEN_WITHIN_MS);
  });
  return opening;
}

/** One transaction; `work` returns how to read its result when it is complete. */
async function run<T>(mode: IDBTransactionMode, work: (store: IDBObjectStore) => () => T): Promise<T> {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const result = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(result());
    transaction.onabort = () => reject(transaction.error);
  });
}

export const readAll = (): Promise<Conversation[]> =>
  run("readonly", (store) => {
    const request = store.getAll() as IDBRequest<Conversation[]>;
    return () => request.result;
  });

export const read = (id: string): Promise<Conversation | undefined> =>
  run("readonly", (store) => {
    const request = store.get(id) as IDBRequest<Conversation | undefined>;
    return () => request.result;
  });

/** Other tabs write too: `work` gets what is stored now. Nothing is written for null; tells whether it was. */
export const update = (
  id: string, work: (stored: Conversation | undefined) => Conversation | null,
): Promise<boolean> =>
  run("readwrite", (store) => {
    let written = false;
    const request = store.get(id) as IDBRequest<Conversation | undefined>;
    request.onsuccess = () => {
      try {
        const after = work(request.result);
        if (after) store.put(after);
        written = after !== null;
      } catch {
        store.transaction.abort();
      }
    };
    return () => written;
  });

export const remove = (id: string): Promise<void> =>
  run("readwrite", (store) => {
    store.delete(id);
    return () => undefined;
  });
