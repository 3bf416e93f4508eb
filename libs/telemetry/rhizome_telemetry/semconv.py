"""Names of attributes and events, as constants of our own.

The GenAI conventions moved out of `opentelemetry-semantic-conventions` and the gRPC ones were renamed there,
so importing the names would tie every service to one release of that package.
"""

from __future__ import annotations

PROVIDER_NAME = "rhizome"

# Resource
SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"
SERVICE_INSTANCE_ID = "service.instance.id"

# GenAI
GEN_AI_OPERATION_NAME = "gen_ai.operation.name"
GEN_AI_PROVIDER_NAME = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
GEN_AI_REQUEST_TEMPERATURE = "gen_ai.request.temperature"
GEN_AI_REQUEST_TOP_P = "gen_ai.request.top_p"
GEN_AI_REQUEST_TOP_K = "gen_ai.request.top_k"
GEN_AI_REQUEST_SEED = "gen_ai.request.seed"
GEN_AI_REQUEST_FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
GEN_AI_REQUEST_PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
GEN_AI_REQUEST_STREAM = "gen_ai.request.stream"
GEN_AI_REQUEST_CHOICE_COUNT = "gen_ai.request.choice.count"
GEN_AI_REQUEST_STOP_SEQUENCES = "gen_ai.request.stop_sequences"
GEN_AI_RESPONSE_ID = "gen_ai.response.id"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
GEN_AI_USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"

OPERATION_CHAT = "chat"
OPERATION_TEXT_COMPLETION = "text_completion"
OPERATION_EMBEDDINGS = "embeddings"

# RPC
RPC_SYSTEM_NAME = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_RESPONSE_STATUS_CODE = "rpc.response.status_code"
RPC_SYSTEM_GRPC = "grpc"

# HTTP, network, errors
HTTP_REQUEST_METHOD = "http.request.method"
HTTP_RESPONSE_STATUS_CODE = "http.response.status_code"
HTTP_ROUTE = "http.route"
URL_PATH = "url.path"
URL_SCHEME = "url.scheme"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
CLIENT_ADDRESS = "client.address"
USER_AGENT_ORIGINAL = "user_agent.original"
ERROR_TYPE = "error.type"
ERROR_TYPE_CANCELLED = "cancelled"

# Rhizome's own
REQUEST_ID = "rhizome.request.id"
REQUEST_PREEMPTIONS = "rhizome.request.preemptions"
REQUEST_FORCED_TOKENS = "rhizome.request.forced_tokens"
EVENT_ADMIT = "rhizome.proxy.admit"
EVENT_PICK = "rhizome.proxy.pick"
EVENT_FIRST_BYTE = "rhizome.proxy.first_byte"
EVENT_RETRY = "rhizome.proxy.retry"
EVENT_RESUME = "rhizome.proxy.resume"
EVENT_FIRST_TOKEN = "rhizome.first_token"  # noqa: S105 - a language model's token, not a secret
EVENT_PREEMPTED = "rhizome.preempted"
PICK_BACKEND = "rhizome.proxy.backend"
PICK_POLICY = "rhizome.proxy.policy"
PICK_IN_FLIGHT = "rhizome.proxy.in_flight"
QUEUE_S = "rhizome.proxy.queue_s"
ATTEMPTS = "rhizome.proxy.attempts"
SPAN_STEP = "rhizome.engine.step"
STEP_DECODES = "rhizome.step.decode_rows"
STEP_PREFILLS = "rhizome.step.prefill_rows"
STEP_PREFILL_TOKENS = "rhizome.step.prefill_tokens"
STEP_SAMPLED_TOKENS = "rhizome.step.sampled_tokens"
SPAN_QUEUE = "rhizome.queue"
SPAN_PREFILL = "rhizome.prefill"
SPAN_DECODE = "rhizome.decode"
