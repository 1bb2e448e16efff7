// What the HTTP API answers, as far as the screens use it. Times are Unix ms.

export type Severity = 'minor' | 'major' | 'critical';

export interface Alert {
  id: string;
  rule: string;
  state: string;
  severity: Severity | null;
  summary: string;
  since: number;
  resource_name?: string | null;
  labels: Record<string, string>;
}

export interface Delivery {
  kind: string;
  receiver: string;
  channel?: string;
  state: string;
  attempts: number;
  last_error: string | null;
  created?: number;
}

export interface Incident {
  id: string;
  title: string;
  state: string;
  severity: Severity;
  generation: number;
  flaps: number;
  opened: number;
  recovered: number | null;
  closed: number | null;
  alerts: string[];
  services: Record<string, string>;
  ticket: string | null;
  owner: string | null;
}

export interface IncidentInFull extends Incident {
  members: Alert[];
  deliveries: Delivery[];
  timeline: { at: number; what: string }[];
}

export interface Ticket {
  number: string;
  title: string;
  status: string;
  priority: string;
  impact: string;
  urgency: string;
  severity: Severity;
  owner: string | null;
  group: string | null;
  version: number;
  created_ms: number;
  updated_ms: number;
  incident: string;
  generation: number;
  recurrence_of: string | null;
  flaps: number;
  services: Record<string, string>;
  pending_reason: string | null;
  resolution_code: string | null;
  resolution_text: string | null;
  replay_command: string;
}

export interface TicketInFull extends Ticket {
  thread: { at_ms: number; actor: string; kind: 'note' | 'system'; text: string }[];
  audit: { seq: number; at_ms: number; actor: string; action: string; hash: string }[];
}
