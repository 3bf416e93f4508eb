/** Two states of one conversation, from two tabs or from a file, made one. Messages are only ever added. */

import { branch, type Conversation, type Message } from "./conversation";

type Messages = Conversation["messages"];

/** All messages of both; of two states of the same one, that which is further along. */
export function union(ours: Messages, theirs: Messages): Messages {
  const both = Object.entries(theirs).map(([id, message]): [string, Message] => [
    id, Object.hasOwn(ours, id) ? further(ours[id]!, message) : message,
  ]);
  return { ...ours, ...Object.fromEntries(both) };
}

function further(ours: Message, theirs: Message): Message {
  if (ended(ours) !== ended(theirs)) return ended(ours) ? ours : theirs;
  return !ended(ours) && size(theirs) > size(ours) ? theirs : ours;
}

export const ended = ({ role, finish, error }: Message): boolean => role !== "assistant" || Boolean(finish || error);
const size = ({ content, reasoning = "" }: Message): number => content.length + reasoning.length;

/** Title and shown branch are those of the newer one. */
export function merged(ours: Conversation, theirs: Conversation): Conversation {
  const newer = theirs.updated > ours.updated ? theirs : ours;
  const older = newer === ours ? theirs : ours;
  return { ...newer, head: newer.head ?? older.head, messages: union(ours.messages, theirs.messages) };
}

/** Two lists as one, newest first. */
export function gathered(ours: Conversation[], theirs: Conversation[]): Conversation[] {
  const all = new Map(ours.map((one) => [one.id, one]));
  for (const one of theirs) {
    const known = all.get(one.id);
    all.set(one.id, known ? merged(known, one) : one);
  }
  return newestFirst([...all.values()]);
}

export const newestFirst = (all: Conversation[]): Conversation[] =>
  all.sort((left, right) => right.updated - left.updated);

/**
 * A conversation that another tab has changed. Who reads it here goes on along the branch that is shown, but is
 * not taken to another one.
 */
export function followed(here: Conversation | undefined, stored: Conversation, shown: boolean): Conversation {
  if (!here) return stored;
  const all = { ...stored, messages: union(stored.messages, here.messages) };
  const further = here.head === null || branch(all).some(({ id }) => id === here.head);
  return { ...all, head: shown && !further ? here.head : stored.head };
}
