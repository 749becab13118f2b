# The messages of Weave v1, with the same fields.
@0xb6ac5e3aca8b2f11;

struct Request {
  requestId @0 :UInt64;
  modelId @1 :UInt32;
  width @2 :UInt32;
  height @3 :UInt32;
  steps @4 :UInt32;
  cfgScale @5 :Float32;
  seed @6 :UInt64;
  clipL @7 :Text;
  clipG @8 :Text;
  t5 @9 :Text;
}

struct Response {
  requestId @0 :UInt64;
  status @1 :UInt32;
  generationTimeMs @2 :UInt32;
  width @3 :UInt32;
  height @4 :UInt32;
  channels @5 :UInt32;
  pixels @6 :Data;
}
