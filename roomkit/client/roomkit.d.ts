// Types of roomkit.js. The wire is described in docs/protocol.md.

export interface Player { id: string; name: string; ready: boolean; connected: boolean; joined_at: string }

export interface RoomState {
  id: string; epoch: string; seq: number; lifecycle: string; status: string; host: string | null;
  players: Player[]; settings: Record<string, unknown>; song_id: string | null; results: unknown;
  max_players: number; min_players: number; locked: boolean; private: boolean; has_password: boolean;
  metadata: Record<string, unknown>; created_at: string; started_at: string | null; transferred_to: string | null;
}

export interface RoomEvent<D = any> { type: string; seq?: number; timestamp?: string; data: D; conflated?: number }

export interface Welcome {
  player_id: string; token: string; epoch: string; seq: number; recovered: boolean | null; state: RoomState;
  time: string; ping_interval: number; pong_timeout: number;
}

/** idle: before connect(); connecting: the first attempt or a retry is under way; open: welcome received;
 *  waiting: lost, the next attempt is scheduled; closed: ended for good (see `closed`). */
export type ConnectionState = 'idle' | 'connecting' | 'open' | 'waiting' | 'closed';

/** waiting: `attempt` is the number of the next attempt in a row, `delay` the seconds until then. */
export interface ConnectionChange { state: ConnectionState; code?: number; reason?: string; attempt?: number; delay?: number }

export interface ClientOptions {
  roomId: string;
  playerId: string;
  name?: string;
  /** Base URL: ws:, wss:, http: or https:. Default: the page's own origin. */
  url?: string;
  token?: string;
  password?: string;
  /** A WebSocket class, for Node versions without one. Default: globalThis.WebSocket. */
  WebSocket?: any;
  /** A Storage keeps the token under `roomkit:<roomId>:<playerId>`, so that a reload takes its seat again (with a fresh
   *  snapshot: epoch and seq are not kept). It is removed when the seat or the room is gone. null (default): nothing is
   *  kept. */
  storage?: Storage | null;
  /** Full jitter: the delay is random(0, min(maxDelay, baseDelay * 2 ** n)), n = the attempts that failed in a row.
   *  Seconds. Default 0.5 and 10. A draining server (1012) says itself when to come back. */
  baseDelay?: number;
  maxDelay?: number;
  /** Attempts in a row before giving up; default Infinity. */
  maxAttempts?: number;
  /** Operations kept while not connected; over it the call's promise is rejected (buffer_full). Default 64. */
  maxBuffer?: number;
  /** Seconds until an unanswered operation's promise is rejected (timeout): counted in the buffer, and anew from the
   *  sending. Also the time that an attempt to connect has until its welcome. Default 15. */
  ackTimeout?: number;
  /** Seconds of silence after which a ping is sent, and seconds to wait for any answer. Default 15 and 10; 0 turns off. */
  pingInterval?: number;
  pingTimeout?: number;
}

/** An operation that the server refused (`code` as in the protocol; nothing was changed), or that got no answer:
 *  buffer_full (not sent), timeout, connection_closed (the connection was lost before the answer, or the client has
 *  ended). An operation is never sent twice: whether one without an answer was done shows in the state. */
export class RoomError extends Error {
  code: string;
  /** It was sent and not answered: the server may have done it. False: it certainly did not. */
  maybeDone: boolean;
}

export class RoomClient {
  /** Throws a TypeError without roomId or playerId, with a url that is none, or where there is no WebSocket class. */
  constructor(options: ClientOptions);
  /** Changes when the group moves to another room (`room_transferred`). Who was away and can no longer be given that event
   *  follows by the state alone: no `room_transferred` then, but a `welcome` of the new room. What was asked for while
   *  away is sent in the new room. */
  readonly roomId: string;
  readonly playerId: string;
  /** The seat's secret: given, stored, or else made here; the server's word in `welcome` counts. */
  readonly token: string;
  readonly connection: ConnectionState;
  /** The local copy of the room's state, kept by the events; null before the first welcome. A new object per change. */
  readonly state: RoomState | null;
  /** My own entry in state.players. */
  readonly me: Player | null;
  readonly isHost: boolean;
  /** Why it ended: the close code, its name and the reason. The names beside the protocol's: connection_lost (1005, 1006:
   *  maxAttempts were made), unknown. */
  readonly closed: { code: number; name: string; reason: string } | null;
  /** Server clock minus local clock, milliseconds, from the last welcome or ping. */
  readonly clockOffset: number;

  /** Resolves at the first welcome; rejects (RoomError, code = the close code's name) when it ended before that: the server
   *  said stay away, maxAttempts were made, or close(). Calling it again gives the same promise. */
  connect(): Promise<Welcome>;
  /** While waiting: makes the next attempt now (a button, the page being shown again). It counts like any other. In every
   *  other state it does nothing. */
  retryNow(): void;
  /** Ends this client for good, without giving up the seat (the grace period runs). */
  close(): void;
  /** Gives up the seat, then ends. It ends also when that fails; the server then frees the seat after the grace period. */
  leave(): Promise<void>;

  // Operations. When one resolves, the state has its effect. While not connected they wait in a buffer, see maxBuffer.

  ready(ready?: boolean): Promise<{ seq: number }>;
  selectSong(songId: string): Promise<{ seq: number }>;
  updateSettings(settings: Record<string, unknown>): Promise<{ seq: number }>;
  startGame(): Promise<{ seq: number }>;
  finishGame(results?: unknown): Promise<{ seq: number }>;
  /** The new room's id. The client moves there by itself when `room_transferred` arrives, as everyone's does. */
  rematch(): Promise<{ seq: number; room_id: string }>;
  sendMessage(data: Record<string, unknown>, options?: { key?: string }): Promise<{ seq: number }>;
  perform(operation: string, data?: Record<string, unknown>): Promise<{ seq: number }>;
  kick(playerId: string, options?: { ban?: boolean }): Promise<{ seq: number }>;
  lock(locked?: boolean): Promise<{ seq: number }>;
  closeRoom(reason?: string): Promise<{ seq: number }>;
  /** A fresh copy of the state from the server. It also repairs the local copy; one that is newer leaves it to the events
   *  that are on their way. */
  refresh(): Promise<RoomState>;
  /** The events after `seq`, in order, for showing what was before this client came (a chat's last messages); null when the
   *  server's history no longer has them all. They are not applied, and no callback is called. */
  eventsAfter(seq: number): Promise<RoomEvent[] | null>;
  /** Round-trip time in milliseconds. */
  ping(): Promise<number>;

  /** Event types of the protocol, and: 'event' (every event), 'state' (the local copy changed), 'connection'
   *  (ConnectionChange), 'welcome' (Welcome), 'gap', 'error' (an error without an id), '*' (all of these but 'event':
   *  events as they are, the rest as { type, data }). Returns the function that stops it. A function that throws is
   *  reported (reportError, console.error) and stops nothing. */
  on(type: string, fn: (event: any) => void): () => void;
  off(type: string, fn: (event: any) => void): void;

  onPlayerJoined?: (data: any, event: RoomEvent) => void;
  onPlayerLeft?: (data: any, event: RoomEvent) => void;
  onPlayerDropped?: (data: any, event: RoomEvent) => void;
  onPlayerResumed?: (data: any, event: RoomEvent) => void;
  onPlayerReady?: (data: any, event: RoomEvent) => void;
  onSongSelected?: (data: any, event: RoomEvent) => void;
  onSettingsChanged?: (data: any, event: RoomEvent) => void;
  onRoomStatus?: (data: any, event: RoomEvent) => void;
  onHostChanged?: (data: any, event: RoomEvent) => void;
  onMessage?: (data: any, event: RoomEvent) => void;
  onGameStarted?: (data: any, event: RoomEvent) => void;
  onGameFinished?: (data: any, event: RoomEvent) => void;
  onRoomUpdated?: (data: any, event: RoomEvent) => void;
  onRoomTransferred?: (data: any, event: RoomEvent) => void;
  onRoomClosed?: (data: any, event: RoomEvent) => void;
  onOperationPerformed?: (data: any, event: RoomEvent) => void;
}

/** code -> { name, comeBack } ; the same table as roomkit.errors.CLOSE_CODES. */
export const CLOSE_CODES: Readonly<Record<number, { name: string; comeBack: boolean }>>;
export function shouldComeBack(code: number): boolean;
