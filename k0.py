from h import *
l=sc.SparseConv1d(4,6,5,padding=2,density=0.3)
print(l, l.crow_indices.shape,l.crow_indices.dtype,l.col_indices.shape,l.col_indices.dtype, l.col_indices[:8], l.padding, l.stride)
t=sc.SparseConvTranspose1d(4,6,5,density=0.3)
print(t,t.crow_indices.shape,t.pattern.shape, t.padding, t.output_padding)
x=torch.randn(3,4,20)
print(ok(l(x),ref(l,x)), ok(t(x),ref(t,x)))
