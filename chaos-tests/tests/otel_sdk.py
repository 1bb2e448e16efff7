"""What the OpenTelemetry SDK for Python sends by one of its exporters: metrics of every kind, log records, spans.

    python otel_sdk.py grpc|http HOST:PORT
"""

import logging
import sys

from opentelemetry import trace
from opentelemetry.metrics import Observation
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

way, address = sys.argv[1:]
if way == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    to = [{"endpoint": address, "insecure": True}] * 3
else:
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    kinds = ("metrics", "logs", "traces")
    to = [{"endpoint": f"http://{address}/v1/{kind}", "compression": Compression.Gzip} for kind in kinds]

resource = Resource.create({"service.name": f"shop-{way}", "service.instance.id": "one", "host.name": "web-1"})

exponential = View(instrument_name="basket.size", aggregation=ExponentialBucketHistogramAggregation())
reader = PeriodicExportingMetricReader(OTLPMetricExporter(**to[0]), export_interval_millis=3_600_000)
metrics = MeterProvider(resource=resource, metric_readers=[reader], views=[exponential])
meter = metrics.get_meter("otel-sdk")
orders = meter.create_counter("orders", unit="{order}")
for n in range(1, 5):
    orders.add(n, {"city": "서울"})
queue = meter.create_up_down_counter("queue.length")
queue.add(7)
queue.add(-2)
meter.create_observable_gauge("room.temperature", callbacks=[lambda _: [Observation(21.5)]], unit="Cel")
waits = meter.create_histogram("wait", unit="s", explicit_bucket_boundaries_advisory=[0.1, 1.0, 10.0])
baskets = meter.create_histogram("basket.size")
for value in (0.05, 0.5, 5.0, 50.0):
    waits.record(value)
    baskets.record(value)

logs = LoggerProvider(resource=resource)
logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(**to[1])))
log = logging.getLogger("shop")
log.setLevel(logging.INFO)
log.addHandler(LoggingHandler(logger_provider=logs))

spans = TracerProvider(resource=resource)
spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(**to[2])))
tracer = spans.get_tracer("otel-sdk")
with tracer.start_as_current_span("GET /orders", kind=trace.SpanKind.SERVER) as span:
    log.warning("주문 %d is late", 42)
    print(f"{span.get_span_context().trace_id:032x}")

for provider in (metrics, logs, spans):
    provider.force_flush()
    provider.shutdown()
