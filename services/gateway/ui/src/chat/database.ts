/** Conversations in the browser's IndexedDB, and in memory where there is none. */

import type { Conversation } from "./conversation";

const STORE = "conversations";
let opening: Promise<IDBDatabase | null> | undefined;

function open(): Promise<IDBDatabase | null> {
  opening ??= new Promise((resolve) => {
    try {
      const request = indexedDB.open("rhizome", 1);
      request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
  return opening;
}

async function run<T>(mode: IDBTransactionMode, work: (store: IDBObjectStore) => IDBRequest<T>): Promise<T | null> {
  const database = await open();
  if (!database) return null;
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });
}

export const readAll = async (): Promise<Conversation[]> =>
  (await run<Conversation[]>("readonly", (store) => store.getAll())) ?? [];
export const write = (conversation: Conversation): Promise<unknown> =>
  run("readwrite", (store) => store.put(conversation));
export const remove = (id: string): Promise<unknown> => run("readwrite", (store) => store.delete(id));
