module weave.example/weave

go 1.24
